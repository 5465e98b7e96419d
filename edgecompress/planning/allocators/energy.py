"""Allocation that keeps the same fraction of its weight's energy in every layer."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import allocate_by_threshold


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Keep the same fraction, 1 − error², of every weight's squared norm; see `Allocator.allocate`.

    References:
        J. M. Alvarez, M. Salzmann. Compression-aware training of deep networks. NeurIPS 2017, section 4 (ranks by retained energy).
    """
    return allocate_by_threshold(offers, budget, lambda _, offer: offer.error)
