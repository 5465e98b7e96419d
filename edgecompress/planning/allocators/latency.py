"""Allocation with the least total loss within a budget of any additive cost, e.g. milliseconds: a multiple-choice knapsack."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from edgecompress.planning.allocators.protocol import Offer

BUDGET_UNITS: Final = 5000  # a budget is divided into about this many units; costs are rounded up to units, so it is never exceeded


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Minimise the sum of the losses within the budget; see `Allocator.allocate`.

    References:
        H. Kellerer, U. Pferschy, D. Pisinger. Knapsack Problems, chapter 11. Springer, 2004.
    """
    cheapest = [_argmin((offer.cost, offer.loss) for offer in row) for row in offers]
    if _total_cost(offers, cheapest) > budget:
        return None
    ideal = [_argmin((offer.loss, offer.cost) for offer in row) for row in offers]
    if _total_cost(offers, ideal) <= budget:
        return ideal  # rounded costs would miss a budget that just permits it, e.g. the whole cost of the dense network
    if budget <= 0:
        return cheapest
    steps = int(budget) * max(1, BUDGET_UNITS // int(budget)) if 1 <= budget <= BUDGET_UNITS else BUDGET_UNITS  # whole numbers stay whole
    units = [[int(np.ceil(offer.cost / budget * steps - 1e-9)) for offer in row] for row in offers]
    best = np.zeros(steps + 1)  # best[b]: least loss of the layers so far, within b units
    choices = []
    for row, needed in zip(offers, units, strict=True):
        table = np.full((len(row), steps + 1), np.inf)
        for i, (offer, n) in enumerate(zip(row, needed, strict=True)):
            if n <= steps:
                table[i, n:] = best[: steps + 1 - n] + offer.loss
        choices.append(table.argmin(axis=0))
        best = table.min(axis=0)
    if not np.isfinite(best[-1]):  # rounding up made a tight budget unreachable; by the exact test above the cheapest offers keep it
        return cheapest
    picked, remaining = [], steps
    for needed, choice in zip(reversed(units), reversed(choices), strict=True):
        i = int(choice[remaining])
        picked.append(i)
        remaining -= needed[i]
    return picked[::-1]


def _argmin(values: Iterable[tuple[float, float]]) -> int:
    """Return the index of the smallest value."""
    return min((value, i) for i, value in enumerate(values))[1]


def _total_cost(offers: Sequence[Sequence[Offer]], picked: Sequence[int]) -> float:
    return sum(row[i].cost for row, i in zip(offers, picked, strict=True))
