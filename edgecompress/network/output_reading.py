"""Read the kind of each output from the recipe, the exported graph and the data; the shape alone never decides."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgecompress.errors import ConfigError
from edgecompress.network.exported import example_outputs
from edgecompress.records.outputs import OUTPUT_KINDS, OutputSpec

aten = torch.ops.aten

Declared = str | OutputSpec | Sequence[str | OutputSpec] | Mapping[str, str | OutputSpec]

SOFTMAX: Final = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}
LOG_SOFTMAX: Final = {aten.log_softmax.int, aten._log_softmax.default}
NORM: Final = {aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim}
NORM_DETOURS: Final = {aten.clamp_min.default, aten.clamp.default, aten.expand_as.default, aten.expand.default, aten.maximum.default}
# Ops that keep values and change the shape, or the memory, of an output.
RESHAPING: Final = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.clone.default, aten.contiguous.default, aten.alias.default,
    aten.permute.default, aten.transpose.int, aten.detach.default, aten.slice.Tensor, aten.select.int, aten._to_copy.default,
    aten.to.dtype,
}  # fmt: skip
IGNORED_LABELS: Final = (-100, -1, 255)  # labels of pixels or positions that no loss counts


def read_specs(
    program: ExportedProgram,
    *,
    names: Sequence[str] = (),
    declared: Declared | None = None,
    targets: Any = None,
    subject: str = "outputs()",
) -> tuple[OutputSpec, ...]:
    """Return the spec of each output of a network: as the user gives it, else as graph and data tell; `values` where neither does.

    Args:
        program: The exported network.
        names: Names of the outputs; by default `output_0`, `output_1`, ….
        declared: A kind, or kinds by position or name; outputs that it leaves out are read.
        targets: Collated targets of a few samples, in any structure; None for none.
        subject: Where `declared` stands, for messages.

    Raises:
        ConfigError: `declared` names an output that is not there, an unknown kind, or one that the graph contradicts.
    """
    nodes = _output_nodes(program)
    examples = example_outputs(program)
    names = tuple(names) or tuple(f"output_{i}" for i in range(len(nodes)))
    read = [_read_graph(node, y) for node, y in zip(nodes, examples, strict=True)]
    read = _read_targets(read, examples, targets)
    given = _match_declared(declared, names, subject)
    unknown = OutputSpec(kind="values", source="neither graph nor data tell another kind")
    specs = []
    for name, found, y in zip(names, read, examples, strict=True):
        spec = found or unknown
        if (asked := given.get(name)) is not None:
            _check_declared(asked, found, y, name, subject)
            axis = spec.axis if asked.axis is None else asked.axis % y.ndim
            spec = msgspec.structs.replace(asked, source=subject, axis=axis)
        specs.append(msgspec.structs.replace(spec, name=name))
    return tuple(specs)


def _output_nodes(program: ExportedProgram) -> list[fx.Node]:
    nodes = {node.name: node for node in program.graph.nodes}
    return [nodes[name] for name in program.graph_signature.user_outputs]


def _read_graph(node: fx.Node, output: Tensor) -> OutputSpec | None:
    """Return what the last operation of an output says about it; None where it says nothing."""
    if not output.is_floating_point():
        return OutputSpec(kind="classes", source=f"its type, {str(output.dtype).removeprefix('torch.')}")
    last = node
    while last.target in RESHAPING:
        last = last.args[0]  # type: ignore[assignment]
    if last.target in SOFTMAX:
        axis = _follow_axis(last, output)
        many = output.ndim > 2
        return OutputSpec(kind="probabilities", source="softmax at its end", axis=axis) if axis is not None or not many else None
    if last.target in LOG_SOFTMAX and (axis := _follow_axis(last, output)) is not None:
        return OutputSpec(kind="logits" if output.ndim == 2 else "class_map", source="log-softmax at its end", axis=axis)
    if last.target is aten.sigmoid.default:
        return OutputSpec(kind="independent", source="sigmoid at its end")
    if last.target is aten.div.Tensor and _is_norm(last.args[1]):
        return OutputSpec(kind="embedding", source="normalization to unit length at its end")
    return None


def _follow_axis(softmax: fx.Node, output: Tensor) -> int | None:
    """Return the axis of an output that is the axis of its softmax: the same where shapes are equal, else the only one of its size."""
    shape, axis = softmax.meta["val"].shape, softmax.args[1]
    assert isinstance(axis, int)
    axis %= len(shape)
    if shape == output.shape:
        return axis
    same = [i for i, size in enumerate(output.shape) if i > 0 and size == shape[axis]]
    return same[0] if len(same) == 1 else None


def _is_norm(node: Any) -> bool:
    while isinstance(node, fx.Node) and node.target in NORM_DETOURS | {operator.getitem}:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.target in NORM


def _read_targets(read: list[OutputSpec | None], outputs: Sequence[Tensor], targets: Any) -> list[OutputSpec | None]:
    """Return what targets say about the outputs of which the graph says nothing, where one output alone fits them."""
    if not isinstance(targets, Tensor):
        return read
    for rule in (_fit_class_targets, _fit_event_targets):
        fits = {i: spec for i, y in enumerate(outputs) if read[i] is None and (spec := rule(y, targets)) is not None}
        if len(fits) == 1:
            return [fits.get(i, spec) for i, spec in enumerate(read)]
    return read


def _fit_class_targets(output: Tensor, targets: Tensor) -> OutputSpec | None:
    """Return the spec of class scores whose classes are the integer targets; None where they do not fit."""
    if targets.is_floating_point() or targets.dtype is torch.bool or not output.is_floating_point():
        return None
    counted = targets[(targets >= 0) & (targets != IGNORED_LABELS[-1])]
    shape = tuple(targets.shape[1:])
    shape = () if shape == (1,) and output.ndim == 2 else shape
    for axis in range(1, output.ndim):
        classes = output.shape[axis]
        fits = tuple(output.shape[1:axis]) + tuple(output.shape[axis + 1 :]) == shape
        if fits and classes > 1 and counted.numel() and int(counted.max()) < classes:
            kind: Any = "logits" if output.ndim == 2 else "class_map"
            return OutputSpec(kind=kind, source=f"integer labels below {classes}", axis=axis)
    return None


def _fit_event_targets(output: Tensor, targets: Tensor) -> OutputSpec | None:
    """Return the spec of independent events whose targets are zeros and ones of the output's shape; None where they do not fit."""
    if output.ndim < 2 or tuple(output.shape[1:]) != tuple(targets.shape[1:]) or output.shape[1] < 2:
        return None
    if not bool(((targets == 0) | (targets == 1)).all()):
        return None
    return OutputSpec(kind="independent", source="targets of zeros and ones in its shape")


def _match_declared(declared: Declared | None, names: Sequence[str], subject: str) -> dict[str, OutputSpec]:
    """Return the user's specs by the name of their output."""
    if declared is None:
        return {}
    if isinstance(declared, str | OutputSpec):
        declared = [declared]
    if isinstance(declared, Mapping):
        if unknown := [name for name in declared if name not in names]:
            raise ConfigError(f"{subject}: no output is named {unknown[0]!r}; the network returns {', '.join(names)}")
        pairs = dict(declared)
    elif len(declared) != len(names):
        raise ConfigError(f"{subject}: {len(declared)} kinds for {len(names)} outputs; the network returns {', '.join(names)}")
    else:
        pairs = dict(zip(names, declared, strict=True))
    return {name: _to_spec(kind, name, subject) for name, kind in pairs.items()}


def _to_spec(kind: str | OutputSpec, name: str, subject: str) -> OutputSpec:
    spec = kind if isinstance(kind, OutputSpec) else OutputSpec(kind=kind)  # type: ignore[arg-type]
    if spec.kind not in OUTPUT_KINDS:
        raise ConfigError(f"{subject}: {name} is {spec.kind!r}; choose from {', '.join(OUTPUT_KINDS)}")
    return spec


def _check_declared(spec: OutputSpec, read: OutputSpec | None, output: Tensor, name: str, subject: str) -> None:
    """Refuse a kind that graph or type contradict.

    Raises:
        ConfigError: Says what the graph shows.
    """
    shape = tuple(output.shape)
    contradictions: list[tuple[Callable[[], bool], str, str]] = [
        (lambda: spec.kind != "classes" and spec.kind not in {"ignore", "state"} and not output.is_floating_point(),
         f"is of type {str(output.dtype).removeprefix('torch.')}", "classes"),
        (lambda: spec.kind == "classes" and output.is_floating_point(), "is of floating point, classes are integers", "logits or values"),
        (lambda: spec.kind in {"logits", "class_map"} and read is not None and read.kind == "probabilities",
         "comes out of a softmax", "probabilities"),
        (lambda: spec.kind in {"logits", "class_map", "probabilities"} and read is not None and read.kind == "independent",
         "comes out of a sigmoid", "independent"),
        (lambda: spec.kind in {"logits", "class_map", "probabilities", "embedding"} and len(shape) < 2, f"has shape {shape}", "values"),
        (lambda: spec.kind == "logits" and len(shape) > 2 and spec.axis is None, f"has shape {shape}, one answer for each position",
         "class_map where the largest channel is the answer, values where the numbers are (heatmaps, boxes), or logits with an axis"),
        (lambda: spec.axis is not None and not -len(shape) < spec.axis < len(shape), f"has no axis {spec.axis}", "another axis"),
        (lambda: bool(spec.channels) and shape[1 if spec.axis is None else spec.axis :][:1] != (len(spec.channels),),
         f"has shape {shape}, {len(spec.channels)} channels are named", "one name a channel, and their axis"),
    ]  # fmt: skip
    for contradicts, fact, remedy in contradictions:
        if contradicts():
            raise ConfigError(f"{subject}: {name} is given as {spec.kind} and {fact}; say {remedy}")
