"""Keep in float the tail that joins ranges which integers cannot hold together, as a detector's boxes (0 to 640) and scores (0 to 1).

One tensor has one scale. Of 256 integers over 0 to 640 a score gets one, so that every score of the file is 0. The tail is the ops from the
last layers to the outputs: its inputs have a scale each, and what joins them computes in float. It is found on calibration data, and marked
in the program by a module of its own around its nodes, so that converters and the simulation give it a scheme as they give one to a layer.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import example_inputs, silence_export
from edgecompress.network.layer_kinds import LINEAR_OPS, WEIGHTED_OPS
from edgecompress.network.subgraph import SOFTMAX_OPS, graph_of, is_float_tensor, is_fused
from edgecompress.quantization.simulation import RecordingInterpreter, map_samples
from edgecompress.records import QuantSpec
from edgecompress.targets import FLOAT32, FLOAT_TAIL, SCHEMES

aten = torch.ops.aten

TAIL_SAMPLES: Final = 16  # ranges that differ enough to matter differ on few samples
# A part that gets fewer than 64 of 256 integers loses two bits by being joined. That is judged early: a float join costs next to nothing.
JOINED_LOSS: Final = 4.0
# The channels of one op differ by themselves, and a layer in float costs its integer speed: it must leave fewer than 16 of 256 integers.
CHANNEL_LOSS: Final = 16.0
MAX_LAYER_CHANNELS: Final = 32  # a layer that ends in more gives class scores, some of which are always near 0 and need no scale
BITS: Final = 8  # the losses above are those of so many bits
MAP_AXES: Final = 4

# Measures largest absolute values over all samples: for (name, None) that of the tensor, for (name, axis) those of its channels, `(c,)`.
Asked = Sequence[tuple[str, int | None]]
MeasurePeaks = Callable[[Asked], Mapping[tuple[str, int | None], Tensor]]

JOINS: Final = {aten.cat.default, aten.stack.default}
ARITHMETIC: Final = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.where.self,
    aten.slice_scatter.default, aten.select_scatter.default,
}  # fmt: skip
SCATTERS: Final = {aten.slice_scatter.default, aten.select_scatter.default}
# Behind these lies the body of a network. Its tensors are read by layers, which have weights for each channel to make up for their ranges.
BODY_OPS: Final = {
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.embedding.default,
    aten.scaled_dot_product_attention.default, aten.lstm.input, aten.gru.input, aten.layer_norm.default, aten.group_norm.default,
    aten.batch_norm.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
}  # fmt: skip


class TailOp(NamedTuple):
    """One op as the search for a tail sees it, in a program or a file.

    Attributes:
        name: Of its first output.
        inputs: Names of the ops that it reads.
        kind: "join" puts its inputs beside each other; "layer" ends the search and may be part of the tail; "body" ends it; the channels of
            "arithmetic" may differ where those of its inputs do not; "other" is anything else.
        axis: Of the channels of a layer's or arithmetic's output; None where it has none.
        parts: Names of the tensors that a join reads, constants among them.
    """

    name: str
    inputs: tuple[str, ...]
    kind: Literal["join", "layer", "body", "arithmetic", "other"] = "other"
    axis: int | None = None
    parts: tuple[str, ...] = ()


class Mixture(NamedTuple):
    """An op whose output holds ranges that integers cannot hold together: the least and the greatest of them."""

    name: str
    least: float
    greatest: float


def keep_tail_float(program: ExportedProgram, quant: QuantSpec, calibration: Batch) -> tuple[ExportedProgram, QuantSpec, str]:
    """Return the program with its tail marked, the quantization in which the tail is fp32, and a sentence that says so.

    Where integers hold every range, as in most networks, program and quantization come back unchanged, with "".

    Args:
        calibration: Each `(samples, …)`; () where the scheme needs none.
    """
    scheme = SCHEMES[quant.scheme]
    if not calibration or not scheme.has_static_activations:
        return program, quant, ""
    graph = graph_of(program)
    few = batches.take_samples(calibration, slice(TAIL_SAMPLES))
    tail, mixtures = find_tail(list_ops(graph), output_names(graph), lambda asked: measure_peaks(graph, few, asked), scheme.activation_bits)
    if not tail:
        return program, quant, ""
    found = [node for node in graph.graph.nodes if node.name in tail]
    for node in (*found, *(_layer_of(node) for node in found)):  # an activation that is fused into a layer has the layer's scheme
        node.meta["nn_module_stack"] = {**(node.meta.get("nn_module_stack") or {}), FLOAT_TAIL: (FLOAT_TAIL, "torch.nn.Module")}
    graph.recompile()
    with torch.no_grad(), silence_export():
        marked = torch.export.export(graph, example_inputs(program), strict=False)
    layers = {**quant.layers, FLOAT_TAIL: FLOAT32}
    return marked, msgspec.structs.replace(quant, layers=layers), describe_tail(tail, mixtures, scheme.activation_bits)


def describe_tail(tail: Collection[str], mixtures: Sequence[Mixture], bits: int) -> str:
    """Return a sentence that tells what stays float and why."""
    worst = max(mixtures, key=lambda each: each.greatest / each.least)
    count = f"the {len(tail)} ops from the last layers to the outputs stay" if len(tail) > 1 else "this op stays"
    ranges = f"values of up to {worst.greatest:.3g} and of up to {worst.least:.3g} meet in one tensor"
    return f"{worst.name}: {ranges}, and the {2**bits} integers of one scale cannot hold both; {count} float32"


def find_tail(ops: Sequence[TailOp], outputs: Collection[str], measure: MeasurePeaks, bits: int = BITS) -> tuple[set[str], list[Mixture]]:
    """Return the names of the ops that stay float, and those among them that mix ranges; nothing where integers hold every range.

    The tail is each op that mixes ranges, all that is computed from it up to the next layer, and what is computed for these ops alone.

    Args:
        ops: In the order of computation.
        outputs: What the network returns.
        measure: Measures tensors by name.
        bits: Of the integers.
    """
    known = {op.name: op for op in ops}
    region = _trace_region(known, outputs)
    reached = [op for op in ops if op.name in region]
    questions = {op: [(name, None) for name in op.parts] if op.kind == "join" else [(op.name, op.axis)] for op in reached if _can_mix(op)}
    asked = list(dict.fromkeys(question for each in questions.values() for question in each))
    found = measure(asked) if asked else {}
    mixtures = []
    for op, each in questions.items():
        peaks = torch.cat([found[question].reshape(-1) for question in each])
        limit = (JOINED_LOSS if op.kind == "join" else CHANNEL_LOSS) * 2.0 ** (bits - BITS)
        peaks = peaks[peaks.isfinite() & (peaks > 0)]  # zeros need no range, and infinities have none
        if len(peaks) and float(peaks.max()) > limit * float(peaks.min()):
            mixtures.append(Mixture(op.name, float(peaks.min()), float(peaks.max())))
    tail = {mixture.name for mixture in mixtures}
    if not tail:
        return set(), []
    passed = [op for op in reached if op.kind not in ("layer", "body")]
    for op in passed:
        if any(name in tail for name in op.inputs):
            tail.add(op.name)
    readers: dict[str, list[str]] = {}
    for op in ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op.name)
    for op in reversed(passed):
        if readers.get(op.name) and all(reader in tail for reader in readers[op.name]):
            tail.add(op.name)
    return tail, mixtures


def list_ops(graph: fx.GraphModule) -> list[TailOp]:
    """Return the ops of a program that depend on its inputs; a layer and the activation fused into it are one op."""
    found = []
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        layer = _layer_of(node)
        inputs = tuple(each.name for each in layer.all_input_nodes if each.op != "get_attr")
        if layer.target in WEIGHTED_OPS:
            shape = node.meta["val"].shape
            axis = len(shape) - 1 if layer.target in LINEAR_OPS else 1
            found.append(TailOp(node.name, inputs, "layer", axis if 0 < axis < len(shape) and shape[axis] <= MAX_LAYER_CHANNELS else None))
            continue
        if node.target in BODY_OPS:
            found.append(TailOp(node.name, inputs, "body"))
        elif not is_float_tensor(node):
            found.append(TailOp(node.name, inputs))
        elif node.target in JOINS:
            found.append(TailOp(node.name, inputs, "join", parts=tuple(each.name for each in node.all_input_nodes)))
        elif node.target in ARITHMETIC and not any(user.target in SOFTMAX_OPS for user in node.users):  # a mask's −∞ is no range
            found.append(TailOp(node.name, inputs, "arithmetic", _channel_axis(node)))
        else:
            found.append(TailOp(node.name, inputs))
    return found


def _layer_of(node: fx.Node) -> fx.Node:
    """Return the layer that an activation is fused into; any other node itself."""
    before = cast("fx.Node", node.args[0]) if is_fused(node) else node
    return before if before.target in WEIGHTED_OPS else node


def output_names(graph: fx.GraphModule) -> list[str]:
    """Return the names of the nodes that a program returns."""
    return [node.name for node in graph.graph.output_node().all_input_nodes]


def measure_peaks(graph: fx.GraphModule, batch: Batch, asked: Asked) -> dict[tuple[str, int | None], Tensor]:
    """Return the largest absolute values that a program computes, over all samples; see `MeasurePeaks`."""

    def measure_sample(*inputs: Tensor) -> dict[str, list[Tensor]]:
        observer = _PeakObserver(graph, asked)
        observer.run(*inputs)
        return observer.values

    with torch.no_grad():
        found = map_samples(measure_sample, batch)
    rows = {name: iter(values) for name, values in found.items()}
    return {question: next(rows[question[0]]).amax(0) for question in asked}


class _PeakObserver(RecordingInterpreter):
    """Runs a graph and records the peaks of the nodes that were asked for, in the order of asking."""

    def __init__(self, graph: fx.GraphModule, asked: Asked) -> None:
        super().__init__(graph, {name for name, _ in asked})
        self.asked = asked

    def record(self, n: fx.Node, value: Tensor) -> list[Tensor]:
        return [peaks_of(value, axis) for name, axis in self.asked if name == n.name]


def peaks_of(value: Tensor, axis: int | None) -> Tensor:
    """Return the largest absolute value along all axes but `axis`."""
    return value.abs().amax([i for i in range(value.ndim) if i != axis])


def choose_axis(shape: Sequence[int], constants: Iterable[Sequence[int]], map_axis: int) -> int | None:
    """Return the axis of a tensor's channels: that along which a constant differs, `map_axis` of a map, else the shorter of 1 and the last.

    Args:
        constants: Shapes of the constants that it is computed with.
    """
    rank = len(shape)
    varying = [[rank - len(each) + i for i, size in enumerate(each) if size > 1] for each in constants]
    if axis := next((axes[0] for axes in varying if len(axes) == 1), 0):
        return axis
    return None if rank < 2 else map_axis if rank >= MAP_AXES else min((1, rank - 1), key=lambda i: shape[i])


def _channel_axis(node: fx.Node) -> int | None:
    shape = node.meta["val"].shape
    if node.target in SCATTERS:
        return (cast("int", node.args[2]) if len(node.args) > 2 else 0) % len(shape) or None
    return choose_axis(shape, (each.meta["val"].shape for each in node.all_input_nodes if each.op == "get_attr" and "val" in each.meta), 1)


def _can_mix(op: TailOp) -> bool:
    return op.kind == "join" or (op.kind in ("layer", "arithmetic") and op.axis is not None)


def _trace_region(known: Mapping[str, TailOp], outputs: Iterable[str]) -> set[str]:
    """Return the ops from the last layers, these included, to the outputs."""
    region: set[str] = set()
    wanted = [name for name in outputs if name in known]
    while wanted:
        op = known[wanted.pop()]
        if op.name not in region:
            region.add(op.name)
            wanted += [name for name in op.inputs if name in known] if op.kind not in ("layer", "body") else []
    return region
