"""Choose a form and a rank for every layer, so that the MACs budget is spent where the network notices it least."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from torch import nn

from edgecompress import batches
from edgecompress.allocators import ALLOCATORS, allocator_named, latency, vbmf
from edgecompress.batches import Batch
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import options_of
from edgecompress.models import tied_layers
from edgecompress.options import AUTO, Choice
from edgecompress.planning import guard, sensitivity, stages
from edgecompress.planning.candidates import DENSE, Candidate, Form, Range, dense, fitted, front, one, worthwhile
from edgecompress.planning.offers import offers
from edgecompress.progress import Track, silent
from edgecompress.records import CompressionPlan, LayerPlan, LayerStats, ModelStats, SkippedLayer

# Of all methods only those in closed form: which of the others is worth its operators on a device is for measured latencies to say.
QUICK: Final = ("svd", "tucker2")


def plan(
    model: nn.Module,
    stats: ModelStats,
    *,
    macs_ratio: float = 0.35,
    allocator: str = "latency",
    method: str = AUTO,
    options: Mapping[str, Any] | None = None,
    layers: Mapping[str, Choice | tuple[str, tuple[int, ...]]] | None = None,
    inputs: Batch | None = None,
    data_aware: bool = False,
    rank_multiple: int = 8,
    min_agreement: float | None = None,
    stage: stages.Stage = stages.ONLY,
    track: Track = silent,
) -> CompressionPlan:
    """Return a plan that keeps total MACs within `macs_ratio` of the dense network at the least predicted loss.

    Args:
        model: The dense model; left untouched.
        stats: What `analyze` found for it.
        allocator: One of ALLOCATORS: how the budget is shared out.
        method: One of METHODS for every layer, or "auto" for svd or Tucker-2, whichever suits a layer best.
        options: Of the method, see its `Options`.
        layers: Fixed choices, layer → (method, rank), (method, rank, options) or ("dense", ()); the rest of the budget goes to the others.
        inputs: Real ones, a tuple `(x,)` or `(x, y, …)` of tensors `(n, …)`, for the sensitivities; without them a squared relative error
            counts the same everywhere.
        data_aware: What is measured on `inputs` is fitted to them too, as `decompose` does when it is given inputs.
        rank_multiple: Ranks are multiples of it where a layer is wide enough.
        min_agreement: When nothing will repair the network afterwards: spend no more of the budget than leaves this top-1 agreement
            with the dense model, measured on the second half of `inputs` after BatchNorm re-estimation on the first.
        stage: Of several, how far this one is to go and what it starts from; `model` is then the network fine-tuned in the stage before,
            with dense layers, and errors and losses are against it.

    Raises:
        ConfigError: Unknown allocator, method, option or layer, or a budget that no choice of ranks reaches.
        UnsupportedError: A fixed choice cannot take its layer, or the allocator has no measure for a method.
        ToolchainError: A process that factorized layers died.
    """
    if not 0 < macs_ratio <= 1:
        raise ConfigError(f"macs ratio {macs_ratio}: must be above 0 and at most 1; 0.35 keeps 35% of the multiply-accumulates")
    chooser = allocator_named(allocator)
    if method == AUTO and options:
        raise ConfigError(f"method {AUTO}: takes no options; name the method they are for")
    forms = [(name, dict(options or {})) for name in (QUICK if method == AUTO else (method,))]
    for form in forms:
        options_of(*form)
    fixed = {name: Choice(*choice) for name, choice in (layers or {}).items()}
    candidates, reasons = _candidates(model, stats, forms, fixed, rank_multiple, stage.present, track)
    if inputs is None:
        losses = sensitivity.without_data(candidates)
    else:
        few = batches.take(batches.check(inputs, "planning inputs"), slice(sensitivity.affordable(candidates, stats.macs)))
        losses = sensitivity.measure(model, candidates, few, data_aware=data_aware, track=track)
    notes = () if inputs is not None else ("no data: sensitivities are squared relative errors, every layer weighed the same",)

    offered = offers(model, candidates, losses, weakened=chooser is vbmf, present=stage.present)

    def at(ratio: float) -> CompressionPlan:
        picked = chooser.allocate(offered, math.floor(ratio * stats.macs + 1e-6))
        if picked is None:
            raise ConfigError(_too_little(stats, candidates, reasons, macs_ratio))
        return _assemble(stats, candidates, reasons, losses, picked, macs_ratio, fixed, allocator, notes)

    made = at(macs_ratio)  # within reach, or no stage begins
    if stage.left:
        weakened = stages.relaxed(macs_ratio, 1.0, stage.left)
        made = msgspec.structs.replace(at(weakened), macs_ratio=weakened)
    if min_agreement is None or not made.layers:
        return made
    return guard.guarded(model, made, at, inputs=inputs or (), min_agreement=min_agreement, data_aware=data_aware, track=track)


def _candidates(
    model: nn.Module,
    stats: ModelStats,
    forms: Sequence[Form],
    fixed: dict[str, Choice],
    multiple: int,
    present: Mapping[str, Candidate],
    track: Track,
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Candidates of each layer, and the reasons of those that have none but what they are now, dense or already factorized."""
    known = [layer.name for layer in stats.layers]
    for name in fixed:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise ConfigError(f"{name}: no such layer; {'did you mean ' + ', '.join(near) if near else 'see `edgecompress analyze`'}?")
    tied = tied_layers(model)
    ranges = [
        _further(layer, model.get_submodule(layer.name), present[layer.name], multiple, fixed=layer.name in fixed)
        if layer.name in present
        else _range(layer, model.get_submodule(layer.name), forms, fixed.get(layer.name), tied, multiple)
        for layer in stats.layers
    ]
    candidates = {}
    for made, found in zip(ranges, fitted(ranges, track=track), strict=True):
        chosen = found and made.layer.name in fixed
        candidates[made.layer.name] = found if chosen else [*front(found), present.get(made.layer.name) or dense(made.layer)]
    return candidates, {made.layer.name: made.reason for made in ranges}


def _range(
    layer: LayerStats, module: nn.Module, forms: Sequence[Form], choice: Choice | None, tied: dict[str, str], multiple: int
) -> Range:
    if choice is not None and choice.method == DENSE:
        return Range(layer, module, [], "kept dense as asked")
    reason = "it is the whole model; wrap it in a module" if not layer.name else ""
    if layer.name in tied:
        reason = f"its weight is shared with {tied[layer.name]}"
    if choice is None:
        return Range(layer, module, [], reason) if reason else worthwhile(layer, module, forms, multiple=multiple)
    if reason:
        raise UnsupportedError(f"{layer.name or 'layer'}: {reason}; leave it dense")
    return one(layer, module, choice.method, choice.rank, choice.options)


def _further(layer: LayerStats, module: nn.Module, now: Candidate, multiple: int, *, fixed: bool) -> Range:
    """Return what a factorized layer may become: its form at lower ranks."""
    if fixed:
        return Range(layer, module, [], "as asked")
    made = worthwhile(layer, module, [(now.method, now.options)], multiple=multiple)
    return made._replace(found=stages.below(made.found, now))


def _assemble(
    stats: ModelStats,
    candidates: dict[str, list[Candidate]],
    reasons: dict[str, str],
    losses: sensitivity.Losses,
    picked: Sequence[int],
    asked: float,
    fixed: dict[str, Choice],
    allocator: str,
    notes: tuple[str, ...],
) -> CompressionPlan:
    """Write down which candidate was picked for each layer, and why."""
    by_name = {layer.name: layer for layer in stats.layers}
    by_loss = ALLOCATORS[allocator] is latency
    chosen, skipped = [], []
    for (name, found), i in zip(candidates.items(), picked, strict=True):
        layer, candidate = by_name[name], found[i]
        if candidate.method == DENSE:
            why = reasons[name] or (_why_dense(name, found, losses) if by_loss else f"{allocator} leaves it dense within the budget")
            skipped.append(SkippedLayer(layer=name, macs=layer.macs, reason=why))
            continue
        best = f"best of {len(found)} within the budget" if by_loss else f"by {allocator}, of {len(found)}"
        chosen.append(
            LayerPlan(
                layer=name,
                method=candidate.method,
                rank=candidate.rank,
                macs_before=layer.macs,
                macs=candidate.macs,
                params_before=layer.params,
                params=candidate.params,
                relative_error=candidate.relative_error,
                loss_increase=losses[name, candidate.method, candidate.rank],
                why="; ".join(filter(None, ("as asked" if name in fixed else best, candidate.note))),
                options=dict(candidate.options),
            )
        )
    return CompressionPlan(
        model=stats.model,
        macs_ratio=asked,
        layers=tuple(chosen),
        skipped=tuple(skipped),
        macs_before=stats.macs,
        macs=stats.macs - sum(c.macs_before - c.macs for c in chosen),
        params_before=stats.params,
        params=stats.params - sum(c.params_before - c.params for c in chosen),
        notes=notes,
    )


def _why_dense(name: str, found: list[Candidate], losses: sensitivity.Losses) -> str:
    mildest = found[-2]
    loss = losses[name, mildest.method, mildest.rank]
    rank = "×".join(map(str, mildest.rank))
    return (
        f"dense is worth its MACs: {mildest.method} {rank} would save {1 - mildest.macs / found[-1].macs:.0%} and cost {loss:.2g} of loss"
    )


def _too_little(stats: ModelStats, candidates: dict[str, list[Candidate]], reasons: dict[str, str], asked: float) -> str:
    """Say why a budget cannot be reached, and which can."""
    floor = sum(min(c.macs for c in found) for found in candidates.values()) / max(1, stats.macs)
    if floor > 1:
        return f"macs ratio {asked:g}: the fixed layers alone take the network to {floor:.2f}; give them lower ranks"
    if all(found[0].method == DENSE for found in candidates.values()):
        name, reason = next(iter(reasons.items()))
        return f"macs ratio {asked:g}: no layer can be factorized, {name} because {reason}; take another method or a ratio of 1"
    enough = min(1.0, math.ceil(100 * floor) / 100)
    return f"macs ratio {asked:g}: the lowest this network reaches is {floor:.3f}; ask for at least {enough:.2f}"
