"""The same largest gain of error in every layer: ALDS."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import lowest


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Make the worst layer's relative error in the operator norm as small as the budget allows; see `Allocator.allocate`.

    The paper bisects the error and alternates that with the choice of each layer's form; with all forms of a layer among its offers, one
    bisection does both.

    References:
        L. Liebenwein, A. Maalouf, O. Gal, D. Feldman, D. Rus. Compressing neural networks: towards determining the optimal layer-wise
        decomposition. NeurIPS 2021, equation 4 and algorithm 1.
    """
    return lowest(offers, budget, lambda _, offer: offer.spectral_error)
