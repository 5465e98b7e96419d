"""A plan as a record: which candidate was picked for each layer, what it costs, and why the others were not."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.choices import Choices
from edgecompress.planning.latencies import Latencies
from edgecompress.planning.sensitivity import Losses
from edgecompress.records import Budget, CompressionPlan, LayerPlan, LayerStats, ModelStats, SkippedLayer


class Considered(NamedTuple):
    """All that was weighed up.

    Attributes:
        candidates: Layer → what could be picked; `dropped` what could not, being no faster than the dense layer.
        choices: What they were taken from.
        rounding: Layer → what computing it in the plan's scheme adds to the loss, where layers may stay in float.
        fixed: Layers whose form was given by hand.
        by_loss: Whether the allocator minimises the loss; `allocator` is its name.
    """

    stats: ModelStats
    candidates: Mapping[str, Sequence[Candidate]]
    dropped: Mapping[str, Sequence[Candidate]]
    choices: Choices
    losses: Losses
    rounding: Mapping[str, float]
    latencies: Latencies | None
    fixed: frozenset[str]
    allocator: str
    by_loss: bool


def assembled(of: Considered, picked: Sequence[int], budget: Budget, scheme: str, notes: tuple[str, ...]) -> CompressionPlan:
    """Write down which candidate was picked for each layer, and why."""
    chosen, skipped = [], []
    for layer, i in zip(of.stats.layers, picked, strict=True):
        candidate = of.candidates[layer.name][i]
        if candidate.method == DENSE:
            ms = of.latencies.dense(layer.name, candidate.scheme) if of.latencies else None
            why = "; ".join(filter(None, (_in_float(of, layer.name, candidate), _why_dense(of, layer))))
            skipped.append(SkippedLayer(layer=layer.name, macs=layer.macs, reason=why, latency_ms=ms, scheme=candidate.scheme))
        else:
            chosen.append(_planned(of, layer, candidate))
    latencies = of.latencies
    saved = sum((c.latency_ms_before or 0.0) - (c.latency_ms or 0.0) for c in chosen)
    if latencies is not None:
        saved += sum(latencies.dense(s.layer) - latencies.dense(s.layer, s.scheme) for s in skipped)
    return CompressionPlan(
        model=of.stats.model,
        budget=budget,
        layers=tuple(chosen),
        skipped=tuple(skipped),
        macs_before=of.stats.macs,
        macs=of.stats.macs - sum(c.macs_before - c.macs for c in chosen),
        params_before=of.stats.params,
        params=of.stats.params - sum(c.params_before - c.params for c in chosen),
        scheme=scheme if latencies else "",
        measured_on=latencies.where if latencies else "",
        latency_ms_before=latencies.whole_ms if latencies else None,
        latency_ms=latencies.whole_ms - saved if latencies else None,
        notes=notes,
    )


def nothing_fits(of: Considered, asked: str) -> str | None:
    """Say why no budget at all can be kept, None where one can."""
    if all(found[0].method == DENSE and len(found) == 1 for found in of.candidates.values()):
        name, reason = next(iter(of.choices.reasons.items()))
        if of.latencies and any(of.dropped.values()):
            return f"{asked}: no form of any layer is faster than the layer is on {of.latencies.where}; ship the network quantized"
        return f"{asked}: no layer can be factorized, {name} because {reason}; take another method or a ratio of 1"
    return None


def _planned(of: Considered, layer: LayerStats, candidate: Candidate) -> LayerPlan:
    found = of.candidates[layer.name]
    best = f"best of {len(found)} within the budget" if of.by_loss else f"by {of.allocator}, of {len(found)}"
    return LayerPlan(
        layer=layer.name,
        method=candidate.method,
        rank=candidate.rank,
        macs_before=layer.macs,
        macs=candidate.macs,
        params_before=layer.params,
        params=candidate.params,
        relative_error=candidate.relative_error,
        loss_increase=_loss(of, layer.name, candidate),
        latency_ms_before=of.latencies.dense(layer.name) if of.latencies else None,
        latency_ms=of.latencies.of(layer.name, candidate) if of.latencies else None,
        scheme=candidate.scheme,
        why="; ".join(filter(None, ("as asked" if layer.name in of.fixed else best, _in_float(of, layer.name, candidate), candidate.note))),
        alternatives=() if layer.name in of.fixed else tuple(_lost(of, layer.name, candidate)),
        options=dict(candidate.options),
    )


def _lost(of: Considered, name: str, chosen: Candidate) -> list[str]:
    """Say of each other method, and of the next higher rank of this one, why it was not taken."""
    everything = [c for c in (*of.candidates[name], *of.dropped.get(name, ())) if c.method != DENSE and c != chosen]
    limit = _loss(of, name, chosen)
    said = []
    for method in dict.fromkeys(c.method for c in everything):
        alike = [c for c in everything if c.method == method and c.scheme == chosen.scheme]
        if not alike:
            continue
        as_good = [c for c in alike if _loss(of, name, c) <= limit]
        rival = min(as_good, key=lambda c: _cost(of, name, c)) if as_good else min(alike, key=lambda c: _loss(of, name, c))
        if method == chosen.method and as_good:
            continue  # a higher rank, which costs more; the table of ranks is no news
        said.append(f"{_named(rival)}: {_costs(of, name, rival)}, {_worse(of, name, rival, chosen)}")
    return [*said, *(f"{method}: at each rank another form has a smaller error for fewer MACs" for method in of.choices.beaten[name])]


def _worse(of: Considered, name: str, rival: Candidate, chosen: Candidate) -> str:
    if of.latencies and of.latencies.knows(name, rival) and of.latencies.of(name, rival) >= of.latencies.dense(name):
        return f"slower than dense {of.latencies.scheme}"
    if of.latencies and not of.latencies.knows(name, rival):
        return "could not be measured"
    mine, theirs = _loss(of, name, chosen), _loss(of, name, rival)
    if _cost(of, name, rival) >= _cost(of, name, chosen):
        return "no cheaper" if theirs >= mine else f"{_cost(of, name, rival) / max(_cost(of, name, chosen), 1e-12):.2g}× the cost"
    return f"{theirs / mine:.2g}× the loss" if mine > 0 else "a higher loss"


def _why_dense(of: Considered, layer: LayerStats) -> str:
    name = layer.name
    if of.choices.reasons[name]:
        return of.choices.reasons[name]
    found = [c for c in of.candidates[name] if c.method != DENSE and not c.scheme]
    if not found and of.latencies:
        rival = min(of.dropped[name], key=lambda c: _cost(of, name, c), default=None)
        fastest = f"{_named(rival)}: {_costs(of, name, rival)}, " if rival and of.latencies.knows(name, rival) else ""
        return f"{fastest}slower than dense {of.latencies.scheme}, {of.latencies.dense(name):.3g} ms"
    if not of.by_loss:
        return f"{of.allocator} leaves it dense within the budget"
    mildest = found[-1]
    before = of.latencies.dense(name) if of.latencies else layer.macs
    saving = 1 - _cost(of, name, mildest) / before
    unit = "time" if of.latencies else "MACs"
    return f"dense is worth its {unit}: {_named(mildest)} would save {saving:.0%} and cost {_loss(of, name, mildest):.2g} of loss"


def _in_float(of: Considered, name: str, candidate: Candidate) -> str:
    return f"kept in {candidate.scheme}: rounding it would cost {of.rounding.get(name, 0.0):.2g} of loss" if candidate.scheme else ""


def _loss(of: Considered, name: str, candidate: Candidate) -> float:
    lost = of.losses.get((name, candidate.method, candidate.rank), 0.0)
    return lost + (0.0 if candidate.scheme else of.rounding.get(name, 0.0))


def _cost(of: Considered, name: str, candidate: Candidate) -> float:
    if of.latencies is None:
        return candidate.macs
    return of.latencies.of(name, candidate) if of.latencies.knows(name, candidate) else math.inf


def _costs(of: Considered, name: str, candidate: Candidate) -> str:
    cost = _cost(of, name, candidate)
    return f"{cost:.3g} ms" if of.latencies else f"{cost:.3g} MACs"


def _named(candidate: Candidate) -> str:
    return " ".join(filter(None, (candidate.method, "×".join(map(str, candidate.rank)), candidate.scheme)))
