"""Latency of every candidate of every layer on a device, from measured layers and the measured dense network."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from edgecompress.planning.candidates import DENSE, Candidate, dense_candidate, effective_calls
from edgecompress.planning.latency_tables.layer_forms import layer_form
from edgecompress.planning.latency_tables.table import LatencyQuery
from edgecompress.records import CompressionPlan, LayerForm, ModelStats

FormKey = tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...], str]  # method, rank, options, scheme


class DeviceCosts(NamedTuple):
    """Latencies on one device: of the dense network, and functions that return those of layers.

    Attributes:
        scheme: Scheme of the measured files.
        conditions: Device, runtime and threads, for people.
        network_ms: Latency of the dense network in that scheme.
        latencies_of: Returns the milliseconds of each form, None for one that cannot be measured; may take minutes.
        layers_ms: Latency of all layers within the network, if that was measured; None: the sum of the layers measured alone.
        remeasure: Measures forms a second time that were measured once, and returns whether any were; None without a device.
    """

    scheme: str
    conditions: str
    network_ms: float
    latencies_of: Callable[[Sequence[LatencyQuery]], list[float | None]]
    layers_ms: float | None = None
    remeasure: Callable[[Sequence[LatencyQuery]], bool] | None = None


class Latencies(NamedTuple):
    """Milliseconds of every candidate of every layer.

    Attributes:
        scheme: Scheme of the network's files.
        conditions: Device, runtime and threads, for people.
        network_ms: Latency of the dense network.
        rest_ms: Latency of the network beside these layers.
        by_form: (layer, form) → milliseconds of all calls of the layer.
    """

    scheme: str
    conditions: str
    network_ms: float
    rest_ms: float
    by_form: Mapping[tuple[str, FormKey], float]

    def ms_of(self, layer: str, candidate: Candidate) -> float:
        """Return the milliseconds of all calls of a layer in a form; those of the dense layer if the form could not be measured."""
        return self.by_form.get((layer, _form_key(candidate)), self.dense_ms(layer))

    def is_measured(self, layer: str, candidate: Candidate) -> bool:
        """Return whether a form of a layer could be measured."""
        return (layer, _form_key(candidate)) in self.by_form

    def dense_ms(self, layer: str, scheme: str = "") -> float:
        """Return the milliseconds of all calls of the dense layer, in the network's scheme unless another is given."""
        return self.by_form.get((layer, _form_key(DENSE_FORM._replace(scheme=scheme))), self.by_form[layer, _form_key(DENSE_FORM)])


DENSE_FORM = Candidate(DENSE, (), 0, 0, 0.0)


class CandidateForm(NamedTuple):
    """A candidate of a layer, with the form under which cost tables keep it; `macs` are those of one of its `calls` calls."""

    layer: str
    candidate: Candidate
    form: LayerForm
    macs: int
    calls: float


def candidate_forms(model: nn.Module, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]]) -> list[CandidateForm]:
    """Return every form whose latency a plan needs: for each layer the dense one and all candidates."""
    rows = []
    for layer in stats.layers:
        module = model.get_submodule(layer.name)
        calls = float(effective_calls(layer, module))
        for c in (dense_candidate(layer), *(c for c in candidates[layer.name] if c.method != DENSE or c.scheme)):
            form = layer_form(layer, module, c.method, c.rank, c.options)
            rows.append(CandidateForm(layer.name, c, form, round(c.macs / max(calls, 1e-9)), calls))
    return rows


def planned_queries(model: nn.Module, stats: ModelStats, plan: CompressionPlan, scheme: str) -> list[LatencyQuery]:
    """Return the queries to a cost table for the forms that a plan chose, in `scheme` unless a layer has its own."""
    layers = {layer.name: layer for layer in stats.layers}
    queries = []
    for c in plan.layers:
        layer, module = layers[c.layer], model.get_submodule(c.layer)
        macs = round(c.macs / max(float(effective_calls(layer, module)), 1e-9))
        queries.append(LatencyQuery(layer_form(layer, module, c.method, c.rank, c.options), c.scheme or scheme, macs))
    return queries


def candidate_latencies(
    model: nn.Module, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], costs: DeviceCosts
) -> Latencies:
    """Return the latencies of all candidates and of the dense layers.

    The forms of one layer are measured in turns, so they can be compared with each other. The dense layers are scaled to their latency
    within the dense network, and the forms of each layer by the same factor. The network's latency beside its layers is the remainder.
    """
    rows = candidate_forms(model, stats, candidates)
    found = costs.latencies_of([LatencyQuery(row.form, row.candidate.scheme or costs.scheme, row.macs) for row in rows])
    ms = {(row.layer, _form_key(row.candidate)): one * row.calls for row, one in zip(rows, found, strict=True) if one is not None}
    for layer in stats.layers:
        ms.setdefault((layer.name, _form_key(DENSE_FORM)), 0.0)  # a layer that cannot be measured alone counts as part of the rest
    alone = sum(ms[layer.name, _form_key(DENSE_FORM)] for layer in stats.layers)
    layers = min(alone if costs.layers_ms is None else costs.layers_ms, costs.network_ms)
    scale = layers / alone if alone else 1.0
    rest = costs.network_ms - scale * alone
    return Latencies(costs.scheme, costs.conditions, costs.network_ms, rest, {form: scale * one for form, one in ms.items()})


def drop_slow_candidates(
    candidates: Mapping[str, Sequence[Candidate]], latencies: Latencies, *, keep: Collection[str]
) -> dict[str, list[Candidate]]:
    """Return the candidates without those that could not be measured or are no faster than the dense layer.

    Args:
        keep: Layers whose forms were chosen already; they keep all their candidates.
    """

    def worthwhile(name: str, c: Candidate) -> bool:
        if name in keep or (c.method == DENSE and not c.scheme):
            return True
        return latencies.is_measured(name, c) and (c.method == DENSE or latencies.ms_of(name, c) < latencies.dense_ms(name, c.scheme))

    return {name: [c for c in found if worthwhile(name, c)] for name, found in candidates.items()}


def _form_key(candidate: Candidate) -> FormKey:
    return candidate.method, candidate.rank, tuple(sorted((k, str(v)) for k, v in candidate.options.items())), candidate.scheme
