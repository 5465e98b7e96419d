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
from edgecompress.quantization.simulation import run_graph
from edgecompress.records import QuantSpec
from edgecompress.targets import FLOAT32, FLOAT_TAIL, SCHEMES

aten = torch.ops.aten

TAIL_SAMPLES: Final = 32  # ranges that differ enough to matter differ on few samples
# A part that gets fewer than 64 of 256 integers loses two bits by being joined. That is judged early: a float join costs next to nothing.
JOINED_LOSS: Final = 4.0
# The channels of one op differ by themselves, and a layer in float costs its integer speed: it must leave fewer than 16 of 256 integers.
CHANNEL_LOSS: Final = 16.0
BITS: Final = 8  # the losses above are those of so many bits
MAP_AXES: Final = 4

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
        inputs: Names of what it reads, constants left out.
        kind: "join" puts its inputs beside each other; "layer" ends the search and may be part of the tail; "body" ends it; the channels of
            "arithmetic" may differ where those of its inputs do not; "other" is anything else.
        axis: Of its channels; None where only the shape tells it.
    """

    name: str
    inputs: tuple[str, ...]
    kind: Literal["join", "layer", "body", "arithmetic", "other"] = "other"
    axis: int | None = None


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
    tail, mixtures = find_tail(list_ops(graph), output_names(graph), lambda names: values_of(graph, few, names), scheme.activation_bits)
    if not tail:
        return program, quant, ""
    for node in graph.graph.nodes:
        if node.name in tail:
            stack = node.meta.get("nn_module_stack") or {}
            node.meta["nn_module_stack"] = {**stack, FLOAT_TAIL: (FLOAT_TAIL, "torch.nn.Module")}
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


def find_tail(
    ops: Sequence[TailOp], outputs: Collection[str], values: Callable[[Sequence[str]], Mapping[str, Tensor]], bits: int = BITS
) -> tuple[set[str], list[Mixture]]:
    """Return the names of the ops that stay float, and those among them that mix ranges; nothing where integers hold every range.

    The tail is each op that mixes ranges, all that is computed from it up to the next layer, and what is computed for these ops alone.

    Args:
        ops: In the order of computation.
        outputs: What the network returns.
        values: Returns the values of tensors by name, each `(samples, …)` with axes as in the network.
        bits: Of the integers.
    """
    known = {op.name: op for op in ops}
    region = _trace_region(known, outputs)
    reached = [op for op in ops if op.name in region]
    asked = {
        name for op in reached for name in (op.inputs if op.kind == "join" else (op.name,) if op.kind in ("layer", "arithmetic") else ())
    }
    found = values(sorted(asked)) if asked else {}
    mixtures = [mixture for op in reached if (mixture := _find_mixture(op, found, 2.0 ** (bits - BITS))) is not None]
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
        layer = cast("fx.Node", node.args[0]) if is_fused(node) else node
        inputs = tuple(each.name for each in layer.all_input_nodes if each.op != "get_attr")
        if layer.target in WEIGHTED_OPS:
            found.append(TailOp(node.name, inputs, "layer", -1 if layer.target in LINEAR_OPS else 1))
            continue
        inputs = tuple(each.name for each in node.all_input_nodes if each.op != "get_attr")
        if node.target in BODY_OPS:
            found.append(TailOp(node.name, inputs, "body"))
        elif not is_float_tensor(node):
            found.append(TailOp(node.name, inputs))
        elif node.target in JOINS:
            found.append(TailOp(node.name, inputs, "join"))
        elif node.target in ARITHMETIC and not any(user.target in SOFTMAX_OPS for user in node.users):  # a mask's −∞ is no range
            found.append(TailOp(node.name, inputs, "arithmetic", _channel_axis(node)))
        else:
            found.append(TailOp(node.name, inputs))
    return found


def output_names(graph: fx.GraphModule) -> list[str]:
    """Return the names of the nodes that a program returns."""
    return [node.name for node in graph.graph.output_node().all_input_nodes]


def values_of(graph: fx.GraphModule, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the values of a program's nodes, `(samples, …)` each."""
    return dict(zip(names, run_graph(graph, batch, names), strict=True))


def varying_axis(shape: Sequence[int], rank: int) -> int | None:
    """Return the one axis, counted from the end, along which a constant of a shape differs in a tensor of `rank` axes; None for several."""
    varying = [axis - len(shape) for axis, size in enumerate(shape) if size > 1]
    return varying[0] if len(varying) == 1 and -varying[0] < rank else None


def _channel_axis(node: fx.Node) -> int | None:
    rank = node.meta["val"].ndim
    if node.target in SCATTERS:
        return cast("int", node.args[2]) if len(node.args) > 2 else 0
    constants = [each.meta["val"].shape for each in node.all_input_nodes if each.op == "get_attr" and "val" in each.meta]
    axes = [axis for axis in (varying_axis(shape, rank) for shape in constants) if axis is not None]
    return axes[0] if axes else 1 if rank >= MAP_AXES else None


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


def _find_mixture(op: TailOp, values: Mapping[str, Tensor], spare: float) -> Mixture | None:
    """Return the ranges that an op mixes, None where it mixes none.

    Args:
        spare: How many times more integers there are than 8 bits have.
    """
    if op.kind == "join":
        return _judge(op.name, torch.stack([values[name].abs().amax() for name in op.inputs if name in values]), JOINED_LOSS * spare)
    value = values.get(op.name)
    if value is None or value.ndim < 2:
        return None
    axis = op.axis if op.axis is not None else min((1, value.ndim - 1), key=lambda a: value.shape[a])
    peaks = value.abs().movedim(axis, 0).flatten(1).amax(1) if axis % value.ndim else value.abs().amax()[None]
    return _judge(op.name, peaks, CHANNEL_LOSS * spare)


def _judge(name: str, peaks: Tensor, limit: float) -> Mixture | None:
    """Return the least and greatest of the largest absolute values where one is more than `limit` times the other; zeros need no range."""
    peaks = peaks[peaks.isfinite() & (peaks > 0)]
    if len(peaks) == 0 or float(peaks.max()) <= limit * float(peaks.min()):
        return None
    return Mixture(name, float(peaks.min()), float(peaks.max()))
