"""Allocation that gives every layer the same fraction of its cost, whatever the loss, as people do by hand."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import allocate_by_threshold


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Give every layer the same fraction of its largest cost, as large as the budget permits; see `Allocator.allocate`."""
    return allocate_by_threshold(offers, budget, lambda row, offer: 1 - offer.cost / max(*(each.cost for each in row), 1e-300))
