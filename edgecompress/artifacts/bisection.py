"""Find the first layer of an artifact whose output departs from the model's, by converting and running parts of the program.

A part ends in several layers as its outputs, so that a few conversions are enough. A converter may treat a layer differently because of the
ops that read its output. The layer found is therefore converted once more as the only output; if it then agrees with the model, the search
starts again with one layer in each part.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgecompress.errors import EdgeCompressError
from edgecompress.network.batches import Batch
from edgecompress.network.parity import sqnr_db
from edgecompress.network.subgraph import ProgramLayer, ancestors_of, extract_subgraph, graph_of, layers_of
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.simulation import Simulation, run_graph
from edgecompress.records import Departure

LAYERS_PER_CUT: Final = 8  # divides the layers into ninths with each conversion, and keeps the outputs of one in memory
MAX_SAMPLES: Final = 16  # the samples that differ most show the fault; more of them take longer and show nothing new
MAX_LAYER_BYTES: Final = 1 << 26  # keeps the outputs of one layer on all samples within 64 MiB
# An artifact and its simulation differ by noise of the same kind, and correct converters lay at most 6 dB below the simulation.
GAP_DB: Final = 10.0
# A layer with 50 dB has no fault, however much better its simulation may be.
FAULTLESS_DB: Final = 50.0
# Correct float32 layers have at least 100 dB; a largest difference of 1e-4 of the range is about 76 dB.
FLOAT_DB: Final = 85.0
HEALTHY_DB: Final = 100.0
HARMLESS_DB: Final = 20.0  # networks bear quantization noise of 20 dB at every layer
LOSS_DB: Final = 3.0  # a layer with at most half of the final noise does not cause that noise


class ConvertCut(Protocol):
    """Converts a part of a program and returns its file's outputs on the samples, each `(n, …)` in the model's layout.

    `taken` are the indices of the whole program's inputs that the part still takes.
    """

    def __call__(self, program: ExportedProgram, taken: tuple[int, ...], *, timeout_s: float) -> Batch: ...


class SignalLoss(NamedTuple):
    """The SQNR of the artifact, and of its scheme simulated in PyTorch; the latter is None where nothing is quantized."""

    artifact_db: float
    simulated_db: float | None = None

    @property
    def is_scheme_at_fault(self) -> bool | None:
        """Whether the simulated scheme loses as much as the artifact, or leaves more noise than signal; None where nothing is quantized."""
        return None if self.simulated_db is None else self.simulated_db < max(0.0, self.artifact_db + GAP_DB)

    @property
    def is_only_rounding(self) -> bool:
        """Whether the loss is float32 rounding, which no layer is at fault for."""
        return self.simulated_db is None and self.artifact_db >= HEALTHY_DB


def worst_samples(outputs: Sequence[Tensor], reference: Sequence[Tensor], layer_size: int) -> list[int]:
    """Return the indices of the samples that differ most, the worst first, as many as bisection uses.

    Args:
        layer_size: Number of values of the largest layer output for one sample.
    """
    noise = sum((y.double() - wanted.double()).square().flatten(1).sum(1) for y, wanted in zip(outputs, reference, strict=True))
    assert isinstance(noise, Tensor)
    count = max(1, min(MAX_SAMPLES, MAX_LAYER_BYTES // max(1, 4 * layer_size)))
    return noise.nan_to_num(torch.inf, torch.inf).argsort(descending=True, stable=True)[:count].tolist()


def largest_layer_size(program: ExportedProgram) -> int:
    """Return the number of values of the largest layer output of `program` for one sample."""
    names = {layer.node for layer in layers_of(graph_of(program))}
    return max((node.meta["val"].numel() for node in program.graph.nodes if node.name in names), default=1)


def find_first_departure(
    program: ExportedProgram,
    convert_cut: ConvertCut,
    batch: Batch,
    *,
    loss: SignalLoss,
    simulation: Simulation | None = None,
    samples: Sequence[int] = (),
    timeout_s: float = 120.0,
    track: Track = track_silently,
) -> Departure | None:
    """Return the first layer whose output departs from the model's; None where every layer by itself agrees, or none could be converted.

    Args:
        program: The program that the artifact was converted from.
        batch: Samples on which the artifact departs, each input `(n, …)`.
        loss: Of the whole artifact on these samples.
        samples: Index of each sample in the evidence.
        timeout_s: No conversion starts after this time; the best result until then is returned with `exact` false.
    """
    if loss.is_only_rounding:
        return None
    search = _Search(program, convert_cut, batch, loss, simulation, time.monotonic() + timeout_s)
    if loss.is_scheme_at_fault:
        search.search_simulation()
        single = search.run_cut([search.found]) if search.found else None
    else:
        for layers_per_cut in (LAYERS_PER_CUT, 1):
            search.reset()
            for _ in track(search.narrow_down(layers_per_cut), "looking for the layer that departs", None):
                pass
            single = search.run_cut([search.found]) if search.found else None
            if search.found is None or single is None or search.has_departed(search.found, single[search.found]):
                break
    if search.found is None or search.found not in search.seen:
        return None
    return search.describe(search.found, search.seen[search.found], samples or range(len(batch[0])))


class _Search:
    """The state of one search.

    Attributes:
        found: The earliest layer known to depart.
        remaining: Layers before `found` that may depart too.
        seen: Outputs of the artifacts for each layer that was checked.
    """

    def __init__(
        self,
        program: ExportedProgram,
        convert_cut: ConvertCut,
        batch: Batch,
        loss: SignalLoss,
        simulation: Simulation | None,
        deadline: float,
    ) -> None:
        self.program, self._convert_cut, self.batch, self.deadline = program, convert_cut, batch, deadline
        self.simulation, self.loss = simulation, loss
        self.graph = graph_of(program)
        self.before = ancestors_of(self.graph)
        self.layers: Mapping[str, ProgramLayer] = {layer.node: layer for layer in layers_of(self.graph)}
        self.outputs = [name for name in program.graph_signature.user_outputs if name in self.layers]
        self.seen: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Start the search anew: the output departs, and any layer before the output may."""
        self.found = self.outputs[0] if len(self.outputs) == 1 else None
        self.remaining = [name for name in self.layers if name != self.found]

    def narrow_down(self, layers_per_cut: int) -> Iterator[int]:
        """Narrow the search until one layer is left or the time is over; yield the number of conversions."""
        done = 0
        while self.remaining and time.monotonic() < self.deadline:
            chosen = _choose_evenly(self.remaining, layers_per_cut)
            values = self.run_cut(chosen)
            if values is None and len(chosen) > 1:
                layers_per_cut = 1  # one of these layers cannot be an output
                continue
            self._exclude_layers(chosen, values or {})
            done += 1
            yield done

    def search_simulation(self) -> None:
        """Find the first layer that departs in the simulation, where the scheme is at fault."""
        for chosen in (list(self.layers)[i : i + LAYERS_PER_CUT] for i in range(0, len(self.layers), LAYERS_PER_CUT)):
            simulated, expected = self._run_simulation(chosen), self._run_model(chosen)
            for name in chosen:
                if sqnr_db(simulated[name], expected[name]) < self._limit_db():
                    self.found, self.remaining = name, []
                    return

    def run_cut(self, names: list[str]) -> dict[str, Tensor] | None:
        """Return the outputs of the layers `names` by an artifact of the program that ends in them; None where it cannot be made or run."""
        program, taken = extract_subgraph(self.program, names)
        remaining_s = max(10.0, self.deadline - time.monotonic())
        try:
            found = self._convert_cut(program, taken, timeout_s=remaining_s)
        except EdgeCompressError:
            return None
        expected = self._run_model(names)
        values = {name: y.reshape(expected[name].shape) for name, y in zip(names, found, strict=True)}
        self.seen |= values
        return values

    def has_departed(self, name: str, values: Tensor) -> bool:
        """Whether a layer's output is worse than its scheme explains."""
        layer_db = sqnr_db(values, self._run_model([name])[name])
        if self.simulation is None or self.loss.is_scheme_at_fault:
            return layer_db < self._limit_db()
        simulated_db = sqnr_db(self._run_simulation([name])[name], self._run_model([name])[name])
        return layer_db < min(FAULTLESS_DB, simulated_db - GAP_DB)

    def describe(self, name: str, values: Tensor, samples: Sequence[int]) -> Departure:
        """Return the record of a layer that departs."""
        expected = self._run_model([name])[name].double()
        difference = (values.double() - expected).nan_to_num(torch.inf, torch.inf, torch.inf).abs()
        difference[values.double() == expected] = 0.0  # −inf in a mask
        place = [int(i) for i in torch.unravel_index(difference.argmax(), difference.shape)]
        found, finite = float(values[tuple(place)]), expected[expected.isfinite()]
        spread = float(finite.max() - finite.min()) if len(finite) else 0.0
        layer = self.layers[name]
        is_number = bool(torch.isfinite(torch.tensor(found)))
        return Departure(
            layer=layer.name,
            op=layer.op,
            expected=float(expected[tuple(place)]),
            found=found if is_number else None,
            index=tuple(place[1:]),
            sample=samples[place[0]],
            max_rel=float(difference.max()) / (spread or 1.0) if is_number else None,
            sqnr_db=sqnr_db(values, expected),
            simulated_db=None if self.simulation is None else sqnr_db(self._run_simulation([name])[name], expected),
            scheme_alone=self.loss.is_scheme_at_fault,
            exact=not self.remaining,
        )

    def _exclude_layers(self, chosen: list[str], values: dict[str, Tensor]) -> None:
        bad = next((name for name in chosen if name in values and self.has_departed(name, values[name])), None)
        if bad is not None:
            self.found = bad
            self.remaining = [name for name in self.remaining if name in self.before[bad]]
        good = {name for name in chosen if name in values and not self.has_departed(name, values[name]) and bad not in self.before[name]}
        clear = good.union(*(self.before[name] for name in good), chosen)
        self.remaining = [name for name in self.remaining if name not in clear]

    def _limit_db(self) -> float:
        known_db = [db for db in self.loss if db is not None]
        return max(HARMLESS_DB if self.simulation else FLOAT_DB, max(known_db) + LOSS_DB)

    def _run_model(self, names: list[str]) -> dict[str, Tensor]:
        return dict(zip(names, run_graph(self.graph, self.batch, names), strict=True))

    def _run_simulation(self, names: list[str]) -> dict[str, Tensor]:
        assert self.simulation is not None
        return dict(zip(names, self.simulation.run(self.batch, names), strict=True))


def _choose_evenly(names: list[str], count: int) -> list[str]:
    """Return at most `count` of `names` at even distances, in order."""
    if len(names) <= count:
        return list(names)
    return [names[(i + 1) * len(names) // (count + 1)] for i in range(count)]
