"""Choose a form and a rank for every layer, so that the MACs budget is spent where the network notices it least."""

import difflib
import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, method_named
from edgecompress.models import tied_layers
from edgecompress.planning import guard, sensitivity
from edgecompress.planning.allocation import allocate
from edgecompress.planning.candidates import DENSE, Candidate, candidates, dense, one
from edgecompress.progress import Track, silent
from edgecompress.records import CompressionPlan, LayerPlan, ModelStats, SkippedLayer

AUTO: Final = "auto"
Choice = tuple[str, tuple[int, ...]]


def plan(
    model: nn.Module,
    stats: ModelStats,
    *,
    macs_ratio: float = 0.35,
    method: str = AUTO,
    layers: Mapping[str, Choice] | None = None,
    inputs: Tensor | None = None,
    rank_multiple: int = 8,
    min_agreement: float | None = None,
    track: Track = silent,
) -> CompressionPlan:
    """Return a plan that keeps total MACs within `macs_ratio` of the dense network at the least predicted loss.

    Args:
        model: The dense model; left untouched.
        stats: What `analyze` found for it.
        method: One of METHODS for every layer, or "auto" for whichever suits a layer best.
        layers: Fixed choices, layer → (method, rank) or ("dense", ()); the rest of the budget goes to the others.
        inputs: `(n, …)` real inputs for the sensitivities; without them a squared relative error counts the same everywhere.
        rank_multiple: Ranks are multiples of it where a layer is wide enough.
        min_agreement: When nothing will repair the network afterwards: spend no more of the budget than leaves this top-1 agreement
            with the dense model, measured on the second half of `inputs` after BatchNorm re-estimation on the first.

    Raises:
        ConfigError: Unknown method or layer, or a budget that no choice of ranks reaches.
        UnsupportedError: A fixed choice cannot take its layer.
    """
    if not 0 < macs_ratio <= 1:
        raise ConfigError(f"macs ratio {macs_ratio}: must be above 0 and at most 1; 0.35 keeps 35% of the multiply-accumulates")
    methods = tuple(METHODS) if method == AUTO else (method,)
    for name in methods:
        method_named(name)
    fixed = dict(layers or {})
    options, reasons = _options(model, stats, methods, fixed, rank_multiple, track)
    if inputs is None:
        losses = sensitivity.without_data(options)
    else:
        few = inputs[: sensitivity.affordable(options, stats.macs)]
        losses = sensitivity.measure(model, options, few, track=track)
    notes = () if inputs is not None else ("no data: sensitivities are squared relative errors, every layer weighed the same",)

    def at(ratio: float) -> CompressionPlan:
        return _assemble(stats, options, reasons, losses, ratio, macs_ratio, fixed, notes)

    made = at(macs_ratio)
    if min_agreement is None or not made.layers:
        return made
    return guard.guarded(model, made, at, inputs=torch.empty(0) if inputs is None else inputs, min_agreement=min_agreement, track=track)


def _options(
    model: nn.Module, stats: ModelStats, methods: tuple[str, ...], fixed: dict[str, Choice], multiple: int, track: Track
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Candidates of each layer, and the reasons of those that have none but dense."""
    known = [layer.name for layer in stats.layers]
    for name in fixed:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise ConfigError(f"{name}: no such layer; {'did you mean ' + ', '.join(near) if near else 'see `edgecompress analyze`'}?")
    tied = tied_layers(model)
    options: dict[str, list[Candidate]] = {}
    reasons: dict[str, str] = {}
    for layer in track(stats.layers, "factorizing candidates", len(stats.layers)):
        module = model.get_submodule(layer.name)
        if layer.name in fixed:
            choice, rank = fixed[layer.name]
            options[layer.name] = [dense(layer) if choice == DENSE else one(layer, module, choice, rank)]
            reasons[layer.name] = "kept dense as asked"
        elif not layer.name:
            options[layer.name], reasons[layer.name] = [dense(layer)], "it is the whole model; wrap it in a module"
        elif layer.name in tied:
            options[layer.name], reasons[layer.name] = [dense(layer)], f"its weight is shared with {tied[layer.name]}"
        else:
            options[layer.name], reasons[layer.name] = candidates(layer, module, methods, multiple=multiple)
    return options, reasons


def _assemble(
    stats: ModelStats,
    options: dict[str, list[Candidate]],
    reasons: dict[str, str],
    losses: sensitivity.Losses,
    ratio: float,
    asked: float,
    fixed: dict[str, Choice],
    notes: tuple[str, ...],
) -> CompressionPlan:
    """Allocate `ratio` of the MACs and write the choice down."""
    by_name = {layer.name: layer for layer in stats.layers}
    costs = [[c.macs for c in found] for found in options.values()]
    weights = [[losses[name, c.method, c.rank] for c in found] for name, found in options.items()]
    picked = allocate(costs, weights, math.floor(ratio * stats.macs + 1e-6))
    if picked is None:
        floor = sum(min(row) for row in costs) / max(1, stats.macs)
        enough = min(1.0, math.ceil(100 * floor) / 100)
        if floor > 1:
            raise ConfigError(f"macs ratio {asked:g}: the fixed layers alone take the network to {floor:.2f}; give them lower ranks")
        raise ConfigError(f"macs ratio {asked:g}: the lowest this network reaches is {floor:.3f}; ask for at least {enough:.2f}")
    chosen, skipped = [], []
    for (name, found), i in zip(options.items(), picked, strict=True):
        layer, candidate = by_name[name], found[i]
        if candidate.method == DENSE:
            why = reasons[name] or _why_dense(name, found, losses)
            skipped.append(SkippedLayer(layer=name, macs=layer.macs, reason=why))
            continue
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
                why="as asked" if name in fixed else f"best of {len(found)} within the budget",
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
