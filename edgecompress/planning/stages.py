"""Several stages of planning, decomposing and fine-tuning, each nearer to the budget than the one before: MUSCO.

MUSCO weakens ranks. Each stage moves a layer's rank R a fraction w of the way to its extreme rank, R ← R − w (R − R_extreme), where the
extreme rank is estimated anew on the fine-tuned weights. Here the extreme ranks are those of a plan for the final budget, made anew in each
stage by any allocator, and a stage saves the fraction w of what remains to be saved; the last stage saves all of it. The allocator chooses
between the present ranks and the extreme ones. No layer gets a lower rank than the final budget asks for: later stages could not give it
back, and the budget might become unreachable.

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
from edgecompress.network.surgery import replace_module
from edgecompress.planning.candidates import Candidate
from edgecompress.records import CompressionPlan, DecomposeResult, LayerPlan


class Stage(NamedTuple):
    """The starting point of a stage's plan, and how far the stage goes.

    Attributes:
        remaining: Fraction of the savings that is left to later stages.
        current: Layer → its present form, for layers that are factorized already; such a layer keeps its form or gets a lower rank.
    """

    remaining: float = 0.0
    current: Mapping[str, Candidate] = {}


SINGLE_STAGE: Final = Stage()


def remaining_fraction(stage: int, stages: int, weakening: float) -> float:
    """Return the fraction of the savings that a stage leaves to later ones: (1 − w)^stage, and 0 after the last; stages count from 1."""
    return 0.0 if stage == stages else (1 - weakening) ** stage


def current_forms(steps: Sequence[LayerPlan]) -> dict[str, Candidate]:
    """Return the forms of the layers after a plan, as candidates without error: keeping a form costs nothing."""
    return {
        step.layer: Candidate(step.method, step.rank, step.params, step.macs, 0.0, 0.0, options=step.options, note="as it is")
        for step in steps
    }


def lower_ranks(found: Sequence[Candidate], now: Candidate) -> list[Candidate]:
    """Return the candidates with the present method at lower ranks: no number of the rank higher, and no cost either."""
    return [
        c
        for c in found
        if (c.method, dict(c.options)) == (now.method, dict(now.options))
        and c.rank != now.rank
        and all(r <= limit for r, limit in zip(c.rank, now.rank, strict=True))
        and c.macs <= now.macs
        and c.params <= now.params
    ]


def reachable_ranks(candidates: Mapping[str, Sequence[Candidate]], final: Sequence[LayerPlan]) -> list[list[int]]:
    """Return for each layer the indices of its candidates between its present form, the last one, and its form in the final plan."""
    lowest = {step.layer: step for step in final}
    return [
        [i for i, c in enumerate(found) if i == len(found) - 1 or (name in lowest and _is_reachable(c, lowest[name]))]
        for name, found in candidates.items()
    ]


def _is_reachable(candidate: Candidate, lowest: LayerPlan) -> bool:
    """Return whether a candidate has the final method at no lower rank."""
    same = (candidate.method, dict(candidate.options)) == (lowest.method, dict(lowest.options))
    return same and all(r >= limit for r, limit in zip(candidate.rank, lowest.rank, strict=True))


def changed_layers(plan: CompressionPlan, before: Sequence[LayerPlan]) -> CompressionPlan:
    """Return the plan without the layers that already have their planned form; those keep their fine-tuned factors."""
    forms = {step.layer: (step.method, step.rank) for step in before}
    return msgspec.structs.replace(plan, layers=tuple(s for s in plan.layers if forms.get(s.layer) != (s.method, s.rank)))


def previous_forms(before: Sequence[LayerPlan], plan: CompressionPlan) -> list[LayerPlan]:
    """Return the steps of the stage before for the layers that a plan changes."""
    named = {step.layer for step in plan.layers}
    return [step for step in before if step.layer in named]


@torch.no_grad()
def restore_dense(network: nn.Module, dense: nn.Module, steps: Sequence[LayerPlan]) -> nn.Module:
    """Return a copy of `network` with factorized layers replaced by the dense layers equal to them.

    Args:
        dense: The network before any stage; its layers give the geometry.
        steps: The layers to replace, in the form that they have in `network`.
    """
    made = copy.deepcopy(network)
    for step in steps:
        compact = cast(Factors, network.get_submodule(step.layer))
        layer = copy.deepcopy(dense.get_submodule(step.layer))
        cast(Tensor, layer.weight).copy_(METHODS[step.method].reconstruct(compact))
        if layer.bias is not None:
            cast(Tensor, layer.bias).copy_(next(p for name, p in compact.named_parameters() if name.rpartition(".")[2] == "bias"))
        replace_module(made, step.layer, layer.train(compact.training))
    return made


def add_kept_layers(result: DecomposeResult, plan: CompressionPlan) -> DecomposeResult:
    """Return the result for a whole plan of which only the changed layers were decomposed: the others get the error 0."""
    errors = {step.layer: result.relative_errors.get(step.layer, 0.0) for step in plan.layers}
    mean = sum(errors.values()) / len(errors) if errors else 0.0
    return msgspec.structs.replace(result, relative_errors=errors, mean_relative_error=mean)
