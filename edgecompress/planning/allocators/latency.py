"""Least total loss within a budget of any additive cost, milliseconds above all: a multiple-choice knapsack on a grid of budgets."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from edgecompress.planning.allocators.protocol import Offer

STEPS: Final = 5000  # a budget is cut into about so many units; costs are rounded up, so that it is never exceeded


def allocate(offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
    """Make the sum of the losses as small as the budget allows; see `Allocator.allocate`.

    References:
        H. Kellerer, U. Pferschy, D. Pisinger. Knapsack Problems, chapter 11. Springer, 2004.
    """
    cheapest = [_least((offer.cost, offer.loss) for offer in row) for row in offers]
    if _total(offers, cheapest) > budget:
        return None
    ideal = [_least((offer.loss, offer.cost) for offer in row) for row in offers]
    if _total(offers, ideal) <= budget:
        return ideal  # rounded costs would miss a budget that just holds it, e.g. all of the dense network's
    if budget <= 0:
        return cheapest
    steps = int(budget) * max(1, STEPS // int(budget)) if 1 <= budget <= STEPS else STEPS  # whole numbers stay whole
    units = [[int(np.ceil(offer.cost / budget * steps - 1e-9)) for offer in row] for row in offers]
    best = np.zeros(steps + 1)  # best[b]: least loss of the layers so far within b units
    choices = []
    for row, needed in zip(offers, units, strict=True):
        table = np.full((len(row), steps + 1), np.inf)
        for i, (offer, n) in enumerate(zip(row, needed, strict=True)):
            if n <= steps:
                table[i, n:] = best[: steps + 1 - n] + offer.loss
        choices.append(table.argmin(axis=0))
        best = table.min(axis=0)
    if not np.isfinite(best[-1]):  # rounding up made the tightest budgets unreachable: the cheapest fit by the exact test above
        return cheapest
    picked, left = [], steps
    for needed, choice in zip(reversed(units), reversed(choices), strict=True):
        i = int(choice[left])
        picked.append(i)
        left -= needed[i]
    return picked[::-1]


def _least(values: Iterable[tuple[float, float]]) -> int:
    """Return the index of the smallest value."""
    return min((value, i) for i, value in enumerate(values))[1]


def _total(offers: Sequence[Sequence[Offer]], picked: Sequence[int]) -> float:
    return sum(row[i].cost for row, i in zip(offers, picked, strict=True))
