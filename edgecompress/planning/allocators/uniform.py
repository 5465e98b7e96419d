"""The same share of its cost for every layer, whatever it does to the network: what people do by hand."""

from collections.abc import Sequence

from edgecompress.planning.allocators.protocol import Offer
from edgecompress.planning.allocators.thresholds import lowest


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Give every layer the same share of its largest cost, as large as the budget allows; see `Allocator.allocate`."""
    return lowest(offers, budget, lambda row, offer: 1 - offer.cost / max(*(each.cost for each in row), 1e-300))
