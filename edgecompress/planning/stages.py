"""Several stages of planning, decomposing and fine-tuning, each nearer to the budget than the one before: MUSCO.

MUSCO weakens ranks: each stage goes the share w of the way from a layer's present rank R to its extreme one, R ← R − w (R − R_extreme),
which is estimated anew on the fine-tuned weights. Here the extreme ranks are those of a plan for the final budget, by any allocator and
made anew in each stage too, and what is shared out is the way to that budget: a stage saves the share w of what is left to save, the last
one all of it. Between the present ranks and the extreme ones the allocator chooses. No layer is taken below what the final budget asks of
it: what a stage gives up beyond that, later ones could not give back, and the budget might come out of reach.

References:
    J. Gusak, M. Kholyavchenko, E. Ponomarev, et al. Automated multi-stage compression of neural networks (MUSCO). ICCV workshops 2019,
    equation 7.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.factorizations import METHODS, Factors
from edgecompress.network.surgery import replace
from edgecompress.planning.candidates import Candidate
from edgecompress.records import CompressionPlan, DecomposeResult, LayerPlan


class Stage(NamedTuple):
    """What the plan of a stage starts from, and how far it goes.

    Attributes:
        left: Of the way from the dense network's cost to the budget, the share that is left to later stages.
        present: Layer → the form it has already; such a layer keeps it, or gets a lower rank.
    """

    left: float = 0.0
    present: Mapping[str, Candidate] = {}


ONLY: Final = Stage()


def left(number: int, of: int, weakening: float) -> float:
    """Return what stage `number` of `of`, the first being 1, leaves of the way: (1 − w)^number, and 0 the last."""
    return 0.0 if number == of else (1 - weakening) ** number


def present(steps: Sequence[LayerPlan]) -> dict[str, Candidate]:
    """Return the forms that layers have after a plan; keeping them costs nothing."""
    return {
        step.layer: Candidate(step.method, step.rank, step.params, step.macs, 0.0, 0.0, options=step.options, note="as it is")
        for step in steps
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


def between(candidates: Mapping[str, Sequence[Candidate]], final: Sequence[LayerPlan]) -> list[list[int]]:
    """Return which candidates of each layer lie between what it is now, the last one, and what a plan for the final budget makes of it."""
    least = {step.layer: step for step in final}
    return [
        [i for i, c in enumerate(found) if i == len(found) - 1 or (name in least and _reaches(c, least[name]))]
        for name, found in candidates.items()
    ]


def _reaches(candidate: Candidate, least: LayerPlan) -> bool:
    same = (candidate.method, dict(candidate.options)) == (least.method, dict(least.options))
    return same and all(r >= limit for r, limit in zip(candidate.rank, least.rank, strict=True))


def changed(plan: CompressionPlan, before: Sequence[LayerPlan]) -> CompressionPlan:
    """Return the part of a plan that is to be done; the other layers have their form, and keep their fine-tuned factors."""
    forms = {step.layer: (step.method, step.rank) for step in before}
    return msgspec.structs.replace(plan, layers=tuple(s for s in plan.layers if forms.get(s.layer) != (s.method, s.rank)))


def among(before: Sequence[LayerPlan], plan: CompressionPlan) -> list[LayerPlan]:
    """Return the layers of the stage before that a plan changes."""
    named = {step.layer for step in plan.layers}
    return [step for step in before if step.layer in named]


@torch.no_grad()
def opened(network: nn.Module, dense: nn.Module, steps: Sequence[LayerPlan]) -> nn.Module:
    """Return a copy of `network` with the dense layers that these factorized ones equal.

    Args:
        dense: The network before any stage, of whose layers they have the geometry.
        steps: The layers, in the form that they have in `network`.
    """
    made = copy.deepcopy(network)
    for step in steps:
        compact = cast(Factors, network.get_submodule(step.layer))
        layer = copy.deepcopy(dense.get_submodule(step.layer))
        cast(Tensor, layer.weight).copy_(METHODS[step.method].reconstruct(compact))
        if layer.bias is not None:
            cast(Tensor, layer.bias).copy_(next(p for name, p in compact.named_parameters() if name.rpartition(".")[2] == "bias"))
        replace(made, step.layer, layer.train(compact.training))
    return made


def with_kept(result: DecomposeResult, plan: CompressionPlan) -> DecomposeResult:
    """Return the result of a whole plan, of which only the changed layers were decomposed: those that were kept have no error."""
    errors = {step.layer: result.relative_errors.get(step.layer, 0.0) for step in plan.layers}
    mean = sum(errors.values()) / len(errors) if errors else 0.0
    return msgspec.structs.replace(result, relative_errors=errors, mean_relative_error=mean)
