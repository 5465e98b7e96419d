"""Allocation that minimises the largest relative error of any layer: ALDS."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import allocate_by_threshold


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Minimise the worst layer's relative error in the operator norm within the budget; see `Allocator.allocate`.

    The paper alternates between bisecting the error and choosing each layer's form. Here all forms of a layer are among its offers, so one
    bisection does both.

    References:
        L. Liebenwein, A. Maalouf, O. Gal, D. Feldman, D. Rus. Compressing neural networks: towards determining the optimal layer-wise
        decomposition. NeurIPS 2021, equation 4 and algorithm 1.
    """
    return allocate_by_threshold(offers, budget, lambda _, offer: offer.spectral_error)
