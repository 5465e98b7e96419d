"""Spend a MACs budget: one candidate a layer, least total loss. A multiple-choice knapsack, solved exactly on a fine grid of budgets."""

from collections.abc import Sequence
from typing import Final

import numpy as np

STEPS: Final = 5000  # a budget is cut into so many units; costs are rounded up, so that it is never exceeded


def allocate(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int] | None:
    """Return the index of the chosen candidate of each layer, or None when even the cheapest exceed the budget.

    Args:
        costs: Per layer, the cost of each candidate.
        losses: In the same order, what each costs the loss; they are added up.
        budget: Upper bound of the total cost.

    References:
        H. Kellerer, U. Pferschy, D. Pisinger. Knapsack Problems, chapter 11. Springer, 2004.
    """
    if sum(min(row) for row in costs) > budget:
        return None
    ideal = [min(zip(loss, row, range(len(row)), strict=True))[2] for row, loss in zip(costs, losses, strict=True)]
    if sum(row[i] for row, i in zip(costs, ideal, strict=True)) <= budget:
        return ideal  # rounded costs would miss a budget that just holds it, e.g. all of the dense network's
    unit = max(1, budget // STEPS)
    width = budget // unit + 1
    best = np.zeros(width)  # best[b]: least loss of the layers so far within b units
    choices = []
    for row, loss in zip(costs, losses, strict=True):
        table = np.full((len(row), width), np.inf)
        for i, (cost, added) in enumerate(zip(row, loss, strict=True)):
            units = -(-cost // unit)
            if units < width:
                table[i, units:] = best[: width - units] + added
        choices.append(table.argmin(axis=0))
        best = table.min(axis=0)
    if not np.isfinite(best[-1]):  # rounding up made the tightest budgets unreachable: the cheapest fit by the exact test above
        return [int(np.argmin(row)) for row in costs]
    picked, left = [], width - 1
    for row, choice in zip(reversed(costs), reversed(choices), strict=True):
        i = int(choice[left])
        picked.append(i)
        left -= -(-row[i] // unit)
    return picked[::-1]
