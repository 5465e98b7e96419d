"""Simplify a float ONNX model with onnxslim, store its weights as fp16, or quantize it with onnxruntime."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

from edgecompress.errors import ToolchainError, first_line

Feeds = list[dict[str, np.ndarray]]
LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger")
MAX_SIMPLIFIED_REL: Final = 1e-5  # of the output range: float32 sums in another order differ by less
FP16_MAX: Final = 65504.0


def simplify(model: onnx.ModelProto, feeds: Feeds) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model simplified by onnxslim, or unchanged with a note where simplification changes the outputs on `feeds`."""
    before = _compute_outputs(model, feeds)
    try:
        slim = onnxslim.slim(onnx.ModelProto.FromString(model.SerializeToString()))
        after = _compute_outputs(slim, feeds)
    except Exception as error:  # onnxslim raises errors of every class, onnxruntime those of its own
        return model, (f"not simplified: onnxslim failed: {first_line(error)}",)
    if not all(np.abs(a - b).max(initial=0) <= MAX_SIMPLIFIED_REL * max(np.ptp(a), 1e-6) for a, b in zip(before, after, strict=True)):
        return model, ("not simplified: onnxslim changed what the model computes",)
    return slim, ()


def _compute_outputs(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(y, np.float64) for feed in feeds for y in session.run(None, feed)]
    except Exception as error:  # its errors have no common class
        raise ToolchainError(f"onnx: onnxruntime does not run the file: {first_line(error)}; report it with the model") from error


def add_readers(model: onnx.ModelProto, kept: Sequence[str], tail: Collection[str]) -> list[str]:
    """Return the names `kept` with those of all nodes computed from `tail` up to the next layers: simplification leaves new names there."""
    names = list(kept)
    reached = {output for node in model.graph.node if node.name in tail for output in node.output}
    for node in model.graph.node:  # in the order of computation
        if node.op_type not in LAYERS and not reached.isdisjoint(node.input):
            reached.update(node.output)
            if node.name not in names:
                names.append(node.name)
    return names


def halve_weights(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Return the model with its weights stored as fp16 and cast to float32, which a runtime does once, when it loads the file.

    Activations stay float32: onnxruntime has few fp16 kernels for CPUs, and would cast around each of the other ops.

    Args:
        kept: Nodes whose weights stay float32.
    """
    stay = {name for node in model.graph.node if node.name in kept for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name in stay or value.dtype != np.float32 or value.ndim < 2 or np.abs(value).max(initial=0) > FP16_MAX:
            continue
        name, half = tensor.name, f"{tensor.name}_fp16"
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _CalibrationFeeds(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Feeds) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def quantize(model: onnx.ModelProto, feeds: Feeds, kept: Collection[str], *, dynamic: bool) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the int8 model, whose weights have a scale for each output channel, and a note on the layers that stayed float.

    Args:
        feeds: Calibration samples, by input name.
        kept: Nodes that stay float32.
        dynamic: Activations take their ranges while the file runs, rather than from `feeds`.
    """
    tempfile.tempdir = str(Path.cwd())  # the working directory is ours and removed afterwards, whatever happens to this process
    before, after = Path("float.onnx"), Path("quantized.onnx")
    _unshare_biases(model)
    onnx.save(model, before)
    try:
        if not dynamic:
            quantize_static(
                before,
                after,
                _CalibrationFeeds(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(kept),
                calibrate_method=CalibrationMethod.MinMax,
            )
        else:
            quantize_dynamic(before, after, per_channel=True, weight_type=QuantType.QInt8, nodes_to_exclude=list(kept))
    except Exception as error:  # onnxruntime's errors have no common class
        raise ToolchainError(f"onnx: onnxruntime.quantization failed: {first_line(error)}; choose fp32 or another format") from error
    made = onnx.load(after)
    _unshare_constants(made)
    return made, _note_float_layers(made)


def _unshare_biases(model: onnx.ModelProto) -> None:
    """Give each reader of a vector a copy of its own.

    onnxruntime would copy a shared bias itself, under a name that another value may have: the second copy of `val_17` is `val_172`.
    """
    vectors = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 1}
    read: set[str] = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in vectors and name in read:
                node.input[i] = f"{node.name}/{i}/vector"
                model.graph.initializer.append(_copy_renamed(vectors[name], node.input[i]))
            read.add(name)


def _unshare_constants(model: onnx.ModelProto) -> None:
    """Give each reader of a quantized constant a copy of its own.

    onnxruntime refuses shared constants in its precise mode, which the runner sets on x86 without VNNI. Weights of layers stay shared:
    copies would double their space.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    nodes: list[onnx.NodeProto] = []
    read: set[str] = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in makers and name in read and node.op_type not in LAYERS:
                prefix = f"{node.name}/{i}"
                node.input[i] = f"{prefix}/constant"
                copies = [(constants[each], f"{prefix}/{each}") for each in makers[name].input]
                model.graph.initializer.extend(_copy_renamed(constant, copy) for constant, copy in copies)
                own = helper.make_node("DequantizeLinear", [copy for _, copy in copies], [node.input[i]], name=f"{prefix}/dequantize")
                own.attribute.extend(makers[name].attribute)
                nodes.append(own)
            read.add(name)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _copy_renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _note_float_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    integers = {tensor.name for tensor in model.graph.initializer if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in integers:
            integers.add(node.output[0])
    weights = integers | {tensor.name for tensor in model.graph.initializer}  # a product of two activations has none
    layers = [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in weights]
    left = sum(node.input[1] not in integers for node in layers)
    return (f"{left} of {len(layers)} convolution and linear layers stayed float32",) if left else ()
