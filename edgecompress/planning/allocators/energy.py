"""The same share of its weight's energy kept in every layer."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import lowest


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Keep 1 − error² of each weight's squared norm, the same for all layers; see `Allocator.allocate`.

    References:
        J. M. Alvarez, M. Salzmann. Compression-aware training of deep networks. NeurIPS 2017, section 4 (ranks by retained energy).
    """
    return lowest(offers, budget, lambda _, offer: offer.error)
