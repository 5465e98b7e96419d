"""Several rounds of planning, decomposing and fine-tuning, each nearer to the budget than the one before: MUSCO.

MUSCO weakens ranks: each round goes the share w of the way from a layer's present rank R to its extreme one, R ← R − w (R − R_extreme),
and ranks follow one rule. Here the ranks of a round are any allocator's, so it is the budget that is weakened: a round goes the share w of
the way that is left from the present cost to the final one, and the last round all of it. With ranks in proportion to the budget both are
the same.

References:
    J. Gusak, M. Kholyavchenko, E. Ponomarev, et al. Automated multi-stage compression of neural networks (MUSCO). ICCV workshops 2019,
    equation 7 and algorithm 1.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from edgecompress.planning.candidates import Candidate
from edgecompress.records import CompressionPlan


class Stage(NamedTuple):
    """What a round before leaves to the plan of this one.

    Attributes:
        left: Of the way from the dense network's cost to the budget, the share that this round leaves to later ones.
        present: Layer → the form it has already; such a layer keeps it, or gets a lower rank.
    """

    left: float = 0.0
    present: Mapping[str, Candidate] = {}


ONLY: Final = Stage()


def left(number: int, of: int, weakening: float) -> float:
    """Return what round `number` of `of`, the first being 1, leaves of the way: (1 − w)^number, and 0 the last."""
    return 0.0 if number == of else (1 - weakening) ** number


def relaxed(final: float, dense: float, share: float) -> float:
    """Return a budget before the final one, which leaves `share` of the way from the dense network's cost."""
    return final + share * (dense - final)


def present(plan: CompressionPlan) -> dict[str, Candidate]:
    """Return the forms that layers have after a plan; keeping them costs nothing."""
    return {
        step.layer: Candidate(step.method, step.rank, step.params, step.macs, 0.0, 0.0, options=step.options, note="as it is")
        for step in plan.layers
    }


def below(found: Sequence[Candidate], now: Candidate) -> list[Candidate]:
    """Keep the candidates that are what a layer is now at a lower rank: the same method, no number of its rank higher, no cost either."""
    return [
        c
        for c in found
        if (c.method, dict(c.options)) == (now.method, dict(now.options))
        and c.rank != now.rank
        and all(r <= limit for r, limit in zip(c.rank, now.rank, strict=True))
        and c.macs <= now.macs
        and c.params <= now.params
    ]
