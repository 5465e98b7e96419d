"""What candidates take on a device, from measured costs of layers and of the whole dense network."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from edgecompress.planning.candidates import DENSE, Candidate, dense, repeats
from edgecompress.planning.latency_tables.forms import form_of
from edgecompress.planning.latency_tables.table import Wanted
from edgecompress.records import CompressionPlan, LayerForm, ModelStats

Form = tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...], str]


class Costs(NamedTuple):
    """Where latencies come from.

    Attributes:
        scheme: Of the files that are measured.
        where: Device, runtime and threads, for people.
        whole_ms: Latency of the dense network in that scheme.
        price: Returns milliseconds of each form; None where it cannot be measured. May take minutes.
        layers_ms: What of the whole is its layers, where that was measured together; None for what they cost alone.
        again: Measures forms once more that were measured once; returns whether there were any. None without a device.
    """

    scheme: str
    where: str
    whole_ms: float
    price: Callable[[Sequence[Wanted]], list[float | None]]
    layers_ms: float | None = None
    again: Callable[[Sequence[Wanted]], bool] | None = None


class Latencies(NamedTuple):
    """Milliseconds of every candidate of every layer.

    Attributes:
        rest_ms: What the network takes beside these layers.
    """

    scheme: str
    where: str
    whole_ms: float
    rest_ms: float
    ms: Mapping[tuple[str, Form], float]

    def of(self, layer: str, candidate: Candidate) -> float:
        """Return milliseconds of all calls of a layer in a form; the dense layer's for one that could not be measured."""
        return self.ms.get((layer, _form(candidate)), self.dense(layer))

    def knows(self, layer: str, candidate: Candidate) -> bool:
        return (layer, _form(candidate)) in self.ms

    def dense(self, layer: str, scheme: str = "") -> float:
        """Return milliseconds of all calls of the dense layer, in the network's scheme unless told another."""
        return self.ms.get((layer, _form(DENSE_FORM._replace(scheme=scheme))), self.ms[layer, _form(DENSE_FORM)])


DENSE_FORM = Candidate(DENSE, (), 0, 0, 0.0)


class Row(NamedTuple):
    """A candidate of a layer, or the layer itself, as cost tables know it; `macs` of one of `calls` calls."""

    layer: str
    candidate: Candidate
    form: LayerForm
    macs: int
    calls: float


def wanted_of(model: nn.Module, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]]) -> list[Row]:
    """Return every form whose cost a plan needs to know: of each layer the dense one and all candidates."""
    rows = []
    for layer in stats.layers:
        module = model.get_submodule(layer.name)
        calls = float(repeats(layer, module))
        for c in (dense(layer), *(c for c in candidates[layer.name] if c.method != DENSE or c.scheme)):
            form = form_of(layer, module, c.method, c.rank, c.options)
            rows.append(Row(layer.name, c, form, round(c.macs / max(calls, 1e-9)), calls))
    return rows


def chosen_forms(model: nn.Module, stats: ModelStats, made: CompressionPlan, scheme: str) -> list[Wanted]:
    """Return the forms that a plan of files in `scheme` chose, as cost tables know them."""
    layers = {layer.name: layer for layer in stats.layers}
    found = []
    for c in made.layers:
        layer, module = layers[c.layer], model.get_submodule(c.layer)
        macs = round(c.macs / max(float(repeats(layer, module)), 1e-9))
        found.append(Wanted(form_of(layer, module, c.method, c.rank, c.options), c.scheme or scheme, macs))
    return found


def priced(model: nn.Module, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], costs: Costs) -> Latencies:
    """Return the latencies of all candidates and of the dense layers.

    A layer's forms are measured in turns and so are comparable with each other; the dense ones are scaled to what they take of the dense
    network, and the forms of each by as much. What a network takes beside its layers is the remainder.
    """
    rows = wanted_of(model, stats, candidates)
    found = costs.price([Wanted(row.form, row.candidate.scheme or costs.scheme, row.macs) for row in rows])
    ms = {(row.layer, _form(row.candidate)): one * row.calls for row, one in zip(rows, found, strict=True) if one is not None}
    for layer in stats.layers:
        ms.setdefault((layer.name, _form(DENSE_FORM)), 0.0)  # of a layer that cannot be measured alone, the rest holds it
    alone = sum(ms[layer.name, _form(DENSE_FORM)] for layer in stats.layers)
    layers = min(alone if costs.layers_ms is None else costs.layers_ms, costs.whole_ms)
    scale = layers / alone if alone else 1.0
    rest = costs.whole_ms - scale * alone
    return Latencies(costs.scheme, costs.where, costs.whole_ms, rest, {form: scale * one for form, one in ms.items()})


def quickest(candidates: Mapping[str, Sequence[Candidate]], latencies: Latencies, *, keep: Collection[str]) -> dict[str, list[Candidate]]:
    """Drop what no plan for this device should hold: forms that could not be measured, or take as long as the dense layer.

    Args:
        keep: Layers whose forms were chosen already.
    """

    def worth(name: str, c: Candidate) -> bool:
        if name in keep or (c.method == DENSE and not c.scheme):
            return True
        return latencies.knows(name, c) and (c.method == DENSE or latencies.of(name, c) < latencies.dense(name, c.scheme))

    return {name: [c for c in found if worth(name, c)] for name, found in candidates.items()}


def _form(candidate: Candidate) -> Form:
    return candidate.method, candidate.rank, tuple(sorted((k, str(v)) for k, v in candidate.options.items())), candidate.scheme
