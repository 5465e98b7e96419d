"""Mixed precision: which few layers to keep in float so that the rest can be integers, from simulations of the scheme.

A layer's sensitivity is what is left of the network's output (SQNR), and how often it still answers as in float, when this layer alone is
quantized. Noise of single layers adds up nearly, so the layers that make most of it are what to keep; agreement, which has few steps on few
inputs, decides how many: that is found by simulating the whole network, never assumed.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.constants import get_constant
from edgecompress.network.parity import agreement, compare, shortfalls, sqnr_db
from edgecompress.network.subgraph import graph_of, is_values, scopes
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.fake_quantize import RULES, weight_of
from edgecompress.quantization.simulation import RANGE_SAMPLES, Quantizing, observed, on_grids, ranges_of, rounded, rules_of, run_at
from edgecompress.records import LayerPrecision, Parity, PrecisionPlan, QuantSpec
from edgecompress.targets import Scheme

SENSITIVITY_SAMPLES: Final = 32
MEASURED_SAMPLES: Final = 256
KEPT: Final = "fp32"


class Trial:
    """A program whose layers can be quantized and not, one way after another, with ranges and rounding found once.

    Args:
        calibration: Each `(n, …)`.
    """

    def __init__(self, program: ExportedProgram, scheme: str, calibration: Batch) -> None:
        spec = QuantSpec(scheme=scheme)
        self.graph = graph_of(rounded(program, spec, calibration))
        nodes = {n.name for n in self.graph.graph.nodes if n.op in {"call_function", "placeholder"} and is_values(n)}
        before = graph_of(program)
        known = {str(n.target) for n in before.graph.nodes if n.op == "get_attr"}
        names = {str(n.target) for n in self.graph.graph.nodes if n.op == "get_attr"}
        with torch.no_grad():
            # Rounding gives a bias to a layer that has none.
            self.exact = {name: get_constant(before, name) if name in known else 0 * get_constant(self.graph, name) for name in names}
            rules = rules_of(self.graph, spec)
            self.on_grid = {name: get_constant(self.graph, name) for name in names} | on_grids(self.graph, rules)
            few = [x[:RANGE_SAMPLES] for x in calibration]
            self.ranges = ranges_of(self.graph, nodes, few) if RULES[scheme].activations == "static" else {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules that the weights belong to, in the order of computation."""
        return tuple(dict.fromkeys(scopes(n)[-1] for n in self.graph.graph.nodes if weight_of(n) and scopes(n) and scopes(n)[-1]))

    def run(self, batch: Batch, quant: QuantSpec) -> tuple[Tensor, ...]:
        """Return what the program gives under `quant`, whose schemes are the trial's and fp32."""
        rules = rules_of(self.graph, quant)
        constants = dict(self.exact)
        for node, rule in rules.items():
            if rule != RULES[KEPT] and (name := weight_of(node)):
                own = [str(m.target) for m in node.all_input_nodes if m.op == "get_attr"]
                constants |= {each: self.on_grid[each] for each in (name, *own)}
        ranges = {name: self.ranges[name] for name in observed(self.graph, rules) if name in self.ranges}
        return run_at(self.graph, batch, (), lambda: Quantizing(self.graph, rules, ranges, constants))


def plan_precision(
    program: ExportedProgram,
    calibration: Batch,
    *,
    scheme: str,
    limits: Scheme,
    fixed: Mapping[str, str] | None = None,
    track: Track = track_silently,
) -> PrecisionPlan:
    """Return the schemes of layers with which a simulation of the whole passes the gate: as few as possible stay in float.

    Ranges come from one half of the calibration inputs, and what is left is measured on the other, with one standard error to spare.

    Args:
        fixed: Schemes of layers, or of blocks of them, given by hand; they stay as they are.

    Raises:
        ConfigError: Fewer than four calibration inputs.
    """
    n = batches.size(calibration)
    if n < 4:
        raise ConfigError(f"mixed precision: {n} calibration inputs, at least 4 are needed; give more with --calibration-samples")
    trial = Trial(program, scheme, batches.take(calibration, slice(n // 2)))
    measured = batches.take(calibration, slice(n // 2, n // 2 + MEASURED_SAMPLES))
    few = batches.take(measured, slice(SENSITIVITY_SAMPLES))
    exact = run_at(graph_of(program), measured)
    by_hand = dict(fixed or {})
    wanted = with_margin(limits, batches.size(measured))
    names = [name for name in trial.layers if not any(f"{name}.".startswith(f"{given}.") for given in by_hand)]

    def under(kept: list[str]) -> Parity:
        return compare(trial.run(measured, QuantSpec(scheme=scheme, layers=by_hand | dict.fromkeys(kept, KEPT))), exact)

    alone: dict[str, tuple[float, float | None]] = {}
    wanted_of_few = batches.take(exact, slice(SENSITIVITY_SAMPLES))
    for name in track(names, "measuring sensitivity to int8", len(names)):
        outputs = trial.run(few, QuantSpec(scheme=KEPT, layers={name: scheme}))
        left_db = min(sqnr_db(y, reference) for y, reference in zip(outputs, wanted_of_few, strict=True))
        alone[name] = left_db, agreement(outputs, wanted_of_few)
    order = sorted(names, key=lambda name: alone[name][0])
    before = under([])
    kept, reached, sought = 0, before, wanted
    if shortfalls(before, wanted):
        low, high, reached = 1, len(order), under(order)
        if shortfalls(reached, wanted) and (nearest := reached.top1_agreement) is not None:
            # About as near as float layers bring it.
            sought = msgspec.structs.replace(wanted, min_agreement=nearest - _deviation(nearest, batches.size(measured)))
            if not shortfalls(before, sought):
                high, reached = 0, before  # and none brings it nearer
        while low < high and not shortfalls(reached, sought):  # the least number that passes; more never hurts but by chance
            middle = (low + high) // 2
            found = under(order[:middle])
            low, high, reached = (middle + 1, high, reached) if shortfalls(found, sought) else (low, middle, found)
        kept = high
    return PrecisionPlan(
        scheme=scheme,
        layers=tuple(_choice(name, order.index(name), kept, alone, scheme) for name in trial.layers if name in alone),
        by_hand=by_hand,
        before=before,
        reached=reached,
        wanted_agreement=wanted.min_agreement,
        note=f"float layers alone do not mend it: {shortfalls(reached, wanted)}" if shortfalls(reached, wanted) else "",
    )


def with_margin(limits: Scheme, samples: int) -> Scheme:
    """Return `limits` one standard error of so few samples higher, so that other samples pass them as well."""
    share = limits.min_agreement
    if share is None:
        return limits
    return msgspec.structs.replace(limits, min_agreement=min(1.0, share + _deviation(share, samples)))


def _deviation(share: float, samples: int) -> float:
    """Return the standard error of a share that was measured on so many samples."""
    return math.sqrt(share * (1 - share) / samples)


def _choice(name: str, place: int, kept: int, alone: Mapping[str, tuple[float, float | None]], scheme: str) -> LayerPrecision:
    why = f"sensitivity {place + 1} of {len(alone)}"
    why += f", one of the {kept} kept" if place < kept else "" if not kept else ", not needed"
    left_db, agrees = alone[name]
    return LayerPrecision(layer=name, scheme=KEPT if place < kept else scheme, alone_sqnr_db=left_db, alone_agreement=agrees, why=why)
