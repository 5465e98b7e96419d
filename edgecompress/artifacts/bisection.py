"""Which layer of an artifact is the first to depart from the model: programs cut off behind some layers, converted alike, run, compared.

A cut has several layers as its outputs, so that a few conversions are enough. What reads a layer can change how a converter treats it, so
the layer that is found is converted once more with nothing behind it, and when it then agrees, all is done again with one layer a cut.
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

LAYERS_A_CUT: Final = 8
SAMPLES: Final = 16
VALUES_BYTES: Final = 1 << 26  # of one layer's outputs, all samples together
# How far an artifact may lie below what the scheme alone leaves: both are noise of the same grids, drawn in another way. Measured: 6 dB.
GAP_DB: Final = 10.0
# Above this a layer has no fault, however much better a simulation may be.
FAULTLESS_DB: Final = 50.0
# What float32 leaves of the worst healthy layer is 100 dB; a largest difference of 1e-4 of the range is some 76 dB.
FLOAT_DB: Final = 85.0
HEALTHY_DB: Final = 100.0
HARMLESS_DB: Final = 20.0  # quantization noise that networks bear at every layer
LOSS_DB: Final = 3.0  # a layer with at most half of the final noise is not where that comes from


class ConvertCut(Protocol):
    """Convert a cut program and return what its file gives on the samples, each output `(n, …)` in the model's layout.

    `taken` are the inputs of the whole program that the cut one still takes.
    """

    def __call__(self, program: ExportedProgram, taken: tuple[int, ...], *, timeout_s: float) -> Batch: ...


class Blame(NamedTuple):
    """What the artifact as a whole, and a simulation of its scheme, leave of the model's signal; None where nothing is quantized."""

    artifact_db: float
    simulated_db: float | None = None

    @property
    def scheme_alone(self) -> bool | None:
        """Whether the scheme does as much harm without the converter, or leaves more noise than signal: how much more says nothing."""
        return None if self.simulated_db is None else self.simulated_db < max(0.0, self.artifact_db + GAP_DB)

    @property
    def rounding_alone(self) -> bool:
        """Whether what is lost is the rounding of float32, which no layer is at fault for."""
        return self.simulated_db is None and self.artifact_db >= HEALTHY_DB


def worst_samples(outputs: Sequence[Tensor], reference: Sequence[Tensor], graph_values: int) -> list[int]:
    """Return the samples that differ most, the worst first, as many as bisection looks at.

    Args:
        graph_values: The most values of any layer for one sample.
    """
    noise = sum((y.double() - wanted.double()).square().flatten(1).sum(1) for y, wanted in zip(outputs, reference, strict=True))
    assert isinstance(noise, Tensor)
    count = max(1, min(SAMPLES, VALUES_BYTES // max(1, 4 * graph_values)))
    return noise.nan_to_num(torch.inf, torch.inf).argsort(descending=True, stable=True)[:count].tolist()


def largest_layer_size(program: ExportedProgram) -> int:
    """Return the most values that any layer of `program` gives for one sample."""
    names = {layer.node for layer in layers_of(graph_of(program))}
    return max((node.meta["val"].numel() for node in program.graph.nodes if node.name in names), default=1)


def find_first_departure(
    program: ExportedProgram,
    attempt: ConvertCut,
    batch: Batch,
    *,
    blame: Blame,
    simulation: Simulation | None = None,
    samples: Sequence[int] = (),
    timeout_s: float = 120.0,
    track: Track = track_silently,
) -> Departure | None:
    """Return the first layer whose output departs from the model's; None when each by itself agrees, or none could be converted.

    Args:
        program: What the artifact was converted from.
        batch: Samples on which the artifact departs, `(n, …)` each.
        blame: Of the whole artifact, on these samples.
        samples: What number each of them has among all.
        timeout_s: No conversion is started after this; the best answer until then is given, `exact` false.
    """
    if blame.rounding_alone:
        return None
    search = _Search(program, attempt, batch, blame, simulation, time.monotonic() + timeout_s)
    if blame.scheme_alone:
        search.simulate()
        single = search.attempt([search.found]) if search.found else None
    else:
        for layers_a_cut in (LAYERS_A_CUT, 1):
            search.start()
            for _ in track(search.rounds(layers_a_cut), "looking for the layer that departs", None):
                pass
            single = search.attempt([search.found]) if search.found else None
            if search.found is None or single is None or search.departs(search.found, single[search.found]):
                break
    if search.found is None or search.found not in search.seen:
        return None
    return search.departure(search.found, search.seen[search.found], samples or range(len(batch[0])))


class _Search:
    """The state of one search.

    Attributes:
        found: The earliest layer known to depart.
        remaining: Layers before it that may depart too.
        seen: What the artifacts gave for each layer that was looked at.
    """

    def __init__(
        self,
        program: ExportedProgram,
        attempt: ConvertCut,
        batch: Batch,
        blame: Blame,
        simulation: Simulation | None,
        deadline: float,
    ) -> None:
        self.program, self._attempt, self.batch, self.deadline = program, attempt, batch, deadline
        self.simulation, self.blame = simulation, blame
        self.graph = graph_of(program)
        self.before = ancestors_of(self.graph)
        self.layers: Mapping[str, ProgramLayer] = {layer.node: layer for layer in layers_of(self.graph)}
        self.outputs = [name for name in program.graph_signature.user_outputs if name in self.layers]
        self.seen: dict[str, Tensor] = {}
        self.start()

    def start(self) -> None:
        """Forget what was found: the output departs, and any layer before it may."""
        self.found = self.outputs[0] if len(self.outputs) == 1 else None
        self.remaining = [name for name in self.layers if name != self.found]

    def rounds(self, layers_a_cut: int) -> Iterator[int]:
        """Narrow the search until one layer is left, or the time is over."""
        done = 0
        while self.remaining and time.monotonic() < self.deadline:
            chosen = _spread(self.remaining, layers_a_cut)
            values = self.attempt(chosen)
            if values is None and len(chosen) > 1:
                layers_a_cut = 1  # one of them is not to be had alone
                continue
            self._narrow(chosen, values or {})
            done += 1
            yield done

    def simulate(self) -> None:
        """Find the first layer by the simulation alone: the scheme is at fault."""
        for chosen in (list(self.layers)[i : i + LAYERS_A_CUT] for i in range(0, len(self.layers), LAYERS_A_CUT)):
            simulated, expected = self._simulated(chosen), self._expected(chosen)
            for name in chosen:
                if sqnr_db(simulated[name], expected[name]) < self._limit_db():
                    self.found, self.remaining = name, []
                    return

    def attempt(self, names: list[str]) -> dict[str, Tensor] | None:
        """Return what an artifact of the program cut off behind `names` gives for them; None when it cannot be made or run."""
        program, taken = extract_subgraph(self.program, names)
        left = max(10.0, self.deadline - time.monotonic())
        try:
            found = self._attempt(program, taken, timeout_s=left)
        except EdgeCompressError:
            return None
        expected = self._expected(names)
        values = {name: y.reshape(expected[name].shape) for name, y in zip(names, found, strict=True)}
        self.seen |= values
        return values

    def departs(self, name: str, values: Tensor) -> bool:
        """Whether a layer's output is worse than its scheme explains."""
        left_db = sqnr_db(values, self._expected([name])[name])
        if self.simulation is None or self.blame.scheme_alone:
            return left_db < self._limit_db()
        simulated_db = sqnr_db(self._simulated([name])[name], self._expected([name])[name])
        return left_db < min(FAULTLESS_DB, simulated_db - GAP_DB)

    def departure(self, name: str, values: Tensor, samples: Sequence[int]) -> Departure:
        """Return what there is to say about a layer that departs."""
        expected = self._expected([name])[name].double()
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
            simulated_db=None if self.simulation is None else sqnr_db(self._simulated([name])[name], expected),
            scheme_alone=self.blame.scheme_alone,
            exact=not self.remaining,
        )

    def _narrow(self, chosen: list[str], values: dict[str, Tensor]) -> None:
        bad = next((name for name in chosen if name in values and self.departs(name, values[name])), None)
        if bad is not None:
            self.found = bad
            self.remaining = [name for name in self.remaining if name in self.before[bad]]
        good = {name for name in chosen if name in values and not self.departs(name, values[name]) and bad not in self.before[name]}
        clear = good.union(*(self.before[name] for name in good), chosen)
        self.remaining = [name for name in self.remaining if name not in clear]

    def _limit_db(self) -> float:
        known_db = [db for db in self.blame if db is not None]
        return max(HARMLESS_DB if self.simulation else FLOAT_DB, max(known_db) + LOSS_DB)

    def _expected(self, names: list[str]) -> dict[str, Tensor]:
        return dict(zip(names, run_graph(self.graph, self.batch, names), strict=True))

    def _simulated(self, names: list[str]) -> dict[str, Tensor]:
        assert self.simulation is not None
        return dict(zip(names, self.simulation.run(self.batch, names), strict=True))


def _spread(names: list[str], count: int) -> list[str]:
    """Return at most `count` of `names`, evenly apart, in order."""
    if len(names) <= count:
        return list(names)
    return [names[(i + 1) * len(names) // (count + 1)] for i in range(count)]
