"""Write a plan's record: the candidate chosen for each layer, its costs, and why the others were not chosen."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.fitted_candidates import FittedCandidates
from edgecompress.planning.latencies import Latencies
from edgecompress.planning.sensitivity import Losses
from edgecompress.records import Budget, CompressionPlan, LayerPlan, LayerStats, ModelStats, SkippedLayer


class Candidates(NamedTuple):
    """The candidates of a plan with all that is known of them.

    Attributes:
        candidates: Layer → the candidates that may be chosen.
        dropped: Layer → the candidates that may not, being no faster than the dense layer.
        fitted: The fitted candidates that both come from.
        int8_losses: Layer → loss increase of computing it in the plan's scheme, if layers may stay in float.
        fixed: Layers whose form was fixed by hand.
        allocator: Name of the allocator.
        by_loss: Whether the allocator minimises the loss.
    """

    stats: ModelStats
    candidates: Mapping[str, Sequence[Candidate]]
    dropped: Mapping[str, Sequence[Candidate]]
    fitted: FittedCandidates
    losses: Losses
    int8_losses: Mapping[str, float]
    latencies: Latencies | None
    fixed: frozenset[str]
    allocator: str
    by_loss: bool


def assemble_plan(known: Candidates, picked: Sequence[int], budget: Budget, scheme: str, notes: tuple[str, ...]) -> CompressionPlan:
    """Return the plan that takes the picked candidate of each layer, with the reasons.

    Args:
        picked: Index of the chosen candidate of each layer.
    """
    chosen, skipped = [], []
    for layer, i in zip(known.stats.layers, picked, strict=True):
        candidate = known.candidates[layer.name][i]
        if candidate.method == DENSE:
            ms = known.latencies.dense_ms(layer.name, candidate.scheme) if known.latencies else None
            why = "; ".join(filter(None, (_reason_float(known, layer.name, candidate), _reason_dense(known, layer))))
            skipped.append(SkippedLayer(layer=layer.name, macs=layer.macs, reason=why, latency_ms=ms, scheme=candidate.scheme))
        else:
            chosen.append(_layer_plan(known, layer, candidate))
    latencies = known.latencies
    saved = sum((c.latency_ms_before or 0.0) - (c.latency_ms or 0.0) for c in chosen)
    if latencies is not None:
        saved += sum(latencies.dense_ms(s.layer) - latencies.dense_ms(s.layer, s.scheme) for s in skipped)
    return CompressionPlan(
        model=known.stats.model,
        budget=budget,
        layers=tuple(chosen),
        skipped=tuple(skipped),
        macs_before=known.stats.macs,
        macs=known.stats.macs - sum(c.macs_before - c.macs for c in chosen),
        params_before=known.stats.params,
        params=known.stats.params - sum(c.params_before - c.params for c in chosen),
        scheme=scheme if latencies else "",
        measured_on=latencies.conditions if latencies else "",
        latency_ms_before=latencies.network_ms if latencies else None,
        latency_ms=latencies.network_ms - saved if latencies else None,
        notes=notes,
    )


def infeasible_reason(known: Candidates, asked: str) -> str | None:
    """Return why the network cannot be made smaller at all, None if it can; `asked` is the budget in words."""
    if all(found[0].method == DENSE and len(found) == 1 for found in known.candidates.values()):
        name, reason = next(iter(known.fitted.reasons.items()))
        if known.latencies and any(known.dropped.values()):
            return f"{asked}: no form of any layer is faster than the layer is on {known.latencies.conditions}; ship the network quantized"
        return f"{asked}: no layer can be factorized, {name} because {reason}; take another method or a ratio of 1"
    return None


def _layer_plan(known: Candidates, layer: LayerStats, candidate: Candidate) -> LayerPlan:
    name = layer.name
    found = known.candidates[name]
    best = f"best of {len(found)} within the budget" if known.by_loss else f"by {known.allocator}, of {len(found)}"
    why = ("as asked" if name in known.fixed else best, _reason_float(known, name, candidate), candidate.note)
    return LayerPlan(
        layer=name,
        method=candidate.method,
        rank=candidate.rank,
        macs_before=layer.macs,
        macs=candidate.macs,
        params_before=layer.params,
        params=candidate.params,
        relative_error=candidate.relative_error,
        loss_increase=_loss_of(known, name, candidate),
        latency_ms_before=known.latencies.dense_ms(name) if known.latencies else None,
        latency_ms=known.latencies.ms_of(name, candidate) if known.latencies else None,
        scheme=candidate.scheme,
        why="; ".join(filter(None, why)),
        alternatives=() if name in known.fixed else tuple(_describe_rivals(known, name, candidate)),
        options=dict(candidate.options),
    )


def _describe_rivals(known: Candidates, name: str, chosen: Candidate) -> list[str]:
    """Return why each other method, and the best lower rank of the chosen one, was not chosen."""
    everything = [c for c in (*known.candidates[name], *known.dropped.get(name, ())) if c.method != DENSE and c != chosen]
    limit = _loss_of(known, name, chosen)
    said = []
    for method in dict.fromkeys(c.method for c in everything):
        alike = [c for c in everything if c.method == method and c.scheme == chosen.scheme]
        if not alike:
            continue
        as_good = [c for c in alike if _loss_of(known, name, c) <= limit]
        rival = min(as_good, key=lambda c: _cost_of(known, name, c)) if as_good else min(alike, key=lambda c: _loss_of(known, name, c))
        if method == chosen.method and as_good:
            continue  # higher ranks of the same method cost more, as everyone expects
        said.append(f"{_describe_candidate(rival)}: {_format_cost(known, name, rival)}, {_reason_against(known, name, rival, chosen)}")
    return [*said, *(f"{method}: at each rank another form has a smaller error for fewer MACs" for method in known.fitted.beaten[name])]


def _reason_against(known: Candidates, name: str, rival: Candidate, chosen: Candidate) -> str:
    latencies = known.latencies
    if latencies and latencies.is_measured(name, rival) and latencies.ms_of(name, rival) >= latencies.dense_ms(name):
        return f"slower than dense {latencies.scheme}"
    if latencies and not latencies.is_measured(name, rival):
        return "could not be measured"
    mine, theirs = _loss_of(known, name, chosen), _loss_of(known, name, rival)
    if _cost_of(known, name, rival) >= _cost_of(known, name, chosen):
        return (
            "no cheaper" if theirs >= mine else f"{_cost_of(known, name, rival) / max(_cost_of(known, name, chosen), 1e-12):.2g}× the cost"
        )
    return f"{theirs / mine:.2g}× the loss" if mine > 0 else "a higher loss"


def _reason_dense(known: Candidates, layer: LayerStats) -> str:
    name, latencies = layer.name, known.latencies
    if known.fitted.reasons[name]:
        return known.fitted.reasons[name]
    found = [c for c in known.candidates[name] if c.method != DENSE and not c.scheme]
    if not found and latencies:
        rival = min(known.dropped[name], key=lambda c: _cost_of(known, name, c), default=None)
        fastest = (
            f"{_describe_candidate(rival)}: {_format_cost(known, name, rival)}, " if rival and latencies.is_measured(name, rival) else ""
        )
        return f"{fastest}slower than dense {latencies.scheme}, {latencies.dense_ms(name):.3g} ms"
    if not known.by_loss:
        return f"{known.allocator} leaves it dense within the budget"
    mildest = found[-1]
    before = latencies.dense_ms(name) if latencies else layer.macs
    saving = 1 - _cost_of(known, name, mildest) / before
    unit = "time" if latencies else "MACs"
    loss = _loss_of(known, name, mildest)
    return f"dense is worth its {unit}: {_describe_candidate(mildest)} would save {saving:.0%} and cost {loss:.2g} of loss"


def _reason_float(known: Candidates, name: str, candidate: Candidate) -> str:
    if not candidate.scheme:
        return ""
    return f"kept in {candidate.scheme}: rounding it would cost {known.int8_losses.get(name, 0.0):.2g} of loss"


def _loss_of(known: Candidates, name: str, candidate: Candidate) -> float:
    loss = known.losses.get((name, candidate.method, candidate.rank), 0.0)
    return loss + (0.0 if candidate.scheme else known.int8_losses.get(name, 0.0))


def _cost_of(known: Candidates, name: str, candidate: Candidate) -> float:
    """Return a candidate's latency, infinite if it could not be measured; without latencies, its MACs."""
    if known.latencies is None:
        return candidate.macs
    return known.latencies.ms_of(name, candidate) if known.latencies.is_measured(name, candidate) else math.inf


def _format_cost(known: Candidates, name: str, candidate: Candidate) -> str:
    cost = _cost_of(known, name, candidate)
    return f"{cost:.3g} ms" if known.latencies else f"{cost:.3g} MACs"


def _describe_candidate(candidate: Candidate) -> str:
    return " ".join(filter(None, (candidate.method, "×".join(map(str, candidate.rank)), candidate.scheme)))
