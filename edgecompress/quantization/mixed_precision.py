"""Mixed precision: choose the few layers that stay in float so that all others can be integers, by simulating the scheme.

A layer's sensitivity is the SQNR of the network's output, and how often it still answers as in float, when that layer alone is quantized.
The noise of single layers nearly adds up, so the layers that make most of it are kept in float. How many are kept is decided by agreement,
which has few steps on few inputs: it is measured by simulating the whole network, never assumed.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.constants import get_constant
from edgecompress.network.layer_kinds import weight_name
from edgecompress.network.outputs import Specs
from edgecompress.network.parity import describe_shortfalls, measure_parity, top1_agreement, worst_sqnr_db
from edgecompress.network.subgraph import enclosing_modules, graph_of, is_float_tensor
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.float_tail import keep_tail_float
from edgecompress.quantization.simulation import (
    RANGE_SAMPLES,
    QuantizingInterpreter,
    fake_quantize_constants,
    node_schemes,
    observe_ranges,
    round_integer_weights,
    run_graph,
    static_activations,
)
from edgecompress.records import LayerPrecision, Parity, PrecisionPlan, QuantSpec
from edgecompress.targets import FLOAT32, SCHEMES, Gate

SENSITIVITY_SAMPLES: Final = 32  # layers are only put in order by them, one simulation a layer
MEASURED_SAMPLES: Final = 256  # enough that one answer more or less is below the gate's 2%
MIN_SAMPLES: Final = 4  # two for the ranges and two to measure on


class LayerwiseSimulation:
    """A program simulated with any choice of quantized layers; activation ranges and rounded weights are found once.

    Args:
        calibration: Each `(n, …)`.
    """

    def __init__(self, program: ExportedProgram, scheme: str, calibration: Batch) -> None:
        spec = QuantSpec(scheme=scheme)
        self.graph = graph_of(round_integer_weights(program, spec, calibration))
        nodes = {n.name for n in self.graph.graph.nodes if n.op in {"call_function", "placeholder"} and is_float_tensor(n)}
        before = graph_of(program)
        known = {str(n.target) for n in before.graph.nodes if n.op == "get_attr"}
        names = {str(n.target) for n in self.graph.graph.nodes if n.op == "get_attr"}
        with torch.no_grad():
            # GPTQ gives a bias to a layer that has none; before rounding it is zero.
            self.exact = {name: get_constant(before, name) if name in known else 0 * get_constant(self.graph, name) for name in names}
            constants = {name: get_constant(self.graph, name) for name in names}
            self.quantized = constants | fake_quantize_constants(self.graph, node_schemes(self.graph, spec))
            few = [x[:RANGE_SAMPLES] for x in calibration]
            self.ranges = observe_ranges(self.graph, nodes, few) if SCHEMES[scheme].has_static_activations else {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules that the weights belong to, in the order of computation."""
        paths = [enclosing_modules(node) for node in self.graph.graph.nodes if weight_name(node)]
        return tuple(dict.fromkeys(path[-1] for path in paths if path and path[-1]))

    def run(self, batch: Batch, quant: QuantSpec) -> tuple[Tensor, ...]:
        """Return the program's outputs under `quant`, in which each layer has the simulated scheme or fp32."""
        schemes = node_schemes(self.graph, quant)
        constants = dict(self.exact)
        for node, scheme in schemes.items():
            if scheme != SCHEMES[FLOAT32] and (name := weight_name(node)):
                own = [str(m.target) for m in node.all_input_nodes if m.op == "get_attr"]
                constants |= {each: self.quantized[each] for each in (name, *own)}
        ranges = {name: self.ranges[name] for name in static_activations(self.graph, schemes) if name in self.ranges}
        return run_graph(self.graph, batch, (), lambda: QuantizingInterpreter(self.graph, schemes, ranges, constants))


class Sensitivity(NamedTuple):
    """SQNR of the network's output, and its top-1 agreement with the float network, when one layer alone is quantized."""

    sqnr_db: float
    agreement: float | None


def plan_precision(
    program: ExportedProgram,
    calibration: Batch,
    *,
    scheme: str,
    limits: Gate,
    fixed: Mapping[str, str] | None = None,
    specs: Specs | None = None,
    track: Track = track_silently,
) -> PrecisionPlan:
    """Return the schemes of layers with which a simulation of the whole network passes the gate, as few as possible of them float.

    Ranges come from one half of the calibration inputs; the other half decides, with one standard error to spare.

    Args:
        fixed: Schemes of layers, or of blocks of them, given by hand; they stay as they are.
        specs: The kinds of the outputs; None guesses them from the shapes.

    Raises:
        ConfigError: Fewer than four calibration inputs.
    """
    n = batches.count_samples(calibration)
    if n < MIN_SAMPLES:
        raise ConfigError(
            f"mixed precision: {n} calibration inputs, at least {MIN_SAMPLES} are needed; give more with --calibration-samples"
        )
    program, tail, _ = keep_tail_float(program, QuantSpec(scheme=scheme), calibration)
    simulation = LayerwiseSimulation(program, scheme, batches.take_samples(calibration, slice(n // 2)))
    measured = batches.take_samples(calibration, slice(n // 2, n // 2 + MEASURED_SAMPLES))
    exact = run_graph(graph_of(program), measured)
    by_hand = dict(fixed or {})
    wanted = tighten_gate(limits, batches.count_samples(measured))
    fixed_layers = by_hand | tail.layers
    names = [name for name in simulation.layers if not any(f"{name}.".startswith(f"{given}.") for given in fixed_layers)]

    def measure(kept: list[str]) -> Parity:
        chosen = QuantSpec(scheme=scheme, layers=fixed_layers | dict.fromkeys(kept, FLOAT32))
        return measure_parity(simulation.run(measured, chosen), exact, specs)

    alone: dict[str, Sensitivity] = {}
    few, exact_few = (batches.take_samples(batch, slice(SENSITIVITY_SAMPLES)) for batch in (measured, exact))
    for name in track(names, "measuring sensitivity to int8", len(names)):
        outputs = simulation.run(few, QuantSpec(scheme=FLOAT32, layers={name: scheme}))
        alone[name] = Sensitivity(worst_sqnr_db(outputs, exact_few), top1_agreement(outputs, exact_few, specs))
    order = sorted(names, key=lambda name: alone[name].sqnr_db)
    before = measure([])
    kept, reached, sought = 0, before, wanted
    if describe_shortfalls(before, wanted):
        low, high, reached = 1, len(order), measure(order)
        if describe_shortfalls(reached, wanted) and (nearest := reached.top1_agreement) is not None:
            # All layers in float miss the gate as well: be content with about what they reach.
            sought = msgspec.structs.replace(wanted, min_agreement=nearest - _standard_error(nearest, batches.count_samples(measured)))
            if not describe_shortfalls(before, sought):
                high, reached = 0, before  # no float layer brings the network nearer
        while low < high and not describe_shortfalls(reached, sought):  # the least number that passes; more never hurts but by chance
            middle = (low + high) // 2
            found = measure(order[:middle])
            low, high, reached = (middle + 1, high, reached) if describe_shortfalls(found, sought) else (low, middle, found)
        kept = high
    return PrecisionPlan(
        scheme=scheme,
        layers=tuple(_layer_precision(name, order.index(name), kept, alone, scheme) for name in simulation.layers if name in alone),
        by_hand=by_hand,
        before=before,
        reached=reached,
        wanted_agreement=wanted.min_agreement,
        note=f"float layers alone do not mend it: {describe_shortfalls(reached, wanted)}" if describe_shortfalls(reached, wanted) else "",
    )


def tighten_gate(gate: Gate, samples: int) -> Gate:
    """Return `gate` with one standard error of so few samples added to its agreement, so that other samples pass as well."""
    share = gate.min_agreement
    if share is None:
        return gate
    return msgspec.structs.replace(gate, min_agreement=min(1.0, share + _standard_error(share, samples)))


def _standard_error(share: float, samples: int) -> float:
    """Return the standard error of a fraction that was measured on so many samples."""
    return math.sqrt(share * (1 - share) / samples)


def _layer_precision(name: str, place: int, kept: int, alone: Mapping[str, Sensitivity], scheme: str) -> LayerPrecision:
    why = f"sensitivity {place + 1} of {len(alone)}"
    why += f", one of the {kept} kept" if place < kept else "" if not kept else ", not needed"
    return LayerPrecision(
        layer=name,
        scheme=FLOAT32 if place < kept else scheme,
        alone_sqnr_db=alone[name].sqnr_db,
        alone_agreement=alone[name].agreement,
        why=why,
    )
