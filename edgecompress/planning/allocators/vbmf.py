"""Ranks at the same place between full rank and the rank that variational Bayes takes for noise-free: MUSCO's weakened ranks."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import lowest


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Weaken every layer's rank by the same factor, 1 for EVBMF's own and beyond it where the budget asks; see `Allocator.allocate`.

    References:
        J. Gusak, M. Kholyavchenko, E. Ponomarev, et al. Automated multi-stage compression of neural networks (MUSCO). ICCV workshops
        2019, equation 7.
    """
    return lowest(offers, budget, lambda _, offer: offer.weakening)
