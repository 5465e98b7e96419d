"""Allocation of ranks at the same fraction of the way from full rank to the rank that variational Bayes estimates: MUSCO."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import allocate_by_threshold


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Weaken every layer's rank by the same factor, where 1 gives EVBMF's rank and tight budgets need more; see `Allocator.allocate`.

    References:
        J. Gusak, M. Kholyavchenko, E. Ponomarev, et al. Automated multi-stage compression of neural networks (MUSCO). ICCV workshops
        2019, equation 7.
    """
    return allocate_by_threshold(offers, budget, lambda _, offer: offer.weakening)
