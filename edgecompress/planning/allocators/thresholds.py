"""Allocation by one threshold: every layer takes its cheapest offer that is no worse than the threshold.

A higher threshold admits the same offers and more, so the total cost falls as the threshold rises, and bisection over the values that
occur finds the lowest threshold within the budget exactly.
"""

import bisect
from collections.abc import Callable, Sequence

from edgecompress.planning.allocators.protocol import Offer


def allocate_by_threshold(
    offers: Sequence[Sequence[Offer]], budget: float, badness: Callable[[Sequence[Offer], Offer], float]
) -> list[int] | None:
    """Return the index of each layer's offer at the lowest threshold whose total cost is within `budget`; None if no threshold is.

    Args:
        badness: Returns the badness of an offer, given all offers of its layer. A layer whose offers are all worse than the threshold
            takes the best of them.
    """
    values = [[badness(row, offer) for offer in row] for row in offers]
    levels = sorted({value for row in values for value in row})

    def choose(level: float) -> list[int]:
        return [_cheapest_offer(row, value, max(level, min(value))) for row, value in zip(offers, values, strict=True)]

    def keeps_budget(level: float) -> bool:
        return sum(row[i].cost for row, i in zip(offers, choose(level), strict=True)) <= budget

    first = bisect.bisect_left(levels, True, key=keeps_budget)
    return choose(levels[first]) if first < len(levels) else None


def _cheapest_offer(row: Sequence[Offer], values: Sequence[float], level: float) -> int:
    """Return the index of the cheapest offer within the level; of equally cheap ones, the best."""
    return min((i for i, value in enumerate(values) if value <= level), key=lambda i: (row[i].cost, values[i]))
