"""Describe the contents of an ONNX file, which onnx checks and infers the shapes of; nothing is run."""

import math
from collections import Counter
from typing import Any, Final

import msgspec
import onnx
from onnx import helper, numpy_helper

from converters.shared.tensor_summary import BY_LIFETIMES, layout_of, peak_bytes, summarize_quantized
from edgecompress.records import ConstantTensor, Inspection, Preprocessing, TensorSpec

QUANTIZING: Final = ("QuantizeLinear", "DequantizeLinear")


def inspect(content: bytes) -> Inspection:
    """Return the contents of an ONNX file."""
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output) if value.name not in constants}
    inputs, outputs = [v for v in graph.input if v.name not in constants], list(graph.output)
    sizes = {name: _size_bytes(value) for name, value in values.items()}
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    unknown = sum(name not in sizes for node in graph.node for name in node.output if name)
    given = metadata.get("preprocessing")
    opsets = ", ".join(f"{opset.domain or 'onnx'} {opset.version}" for opset in model.opset_import)
    return Inspection(
        path="",
        format="",
        sha256="",
        size_bytes=0,
        weights_bytes=sum(_constant_bytes(tensor) for tensor in constants.values()),
        inputs=tuple(_spec(value) for value in inputs),
        outputs=tuple(_spec(value) for value in outputs),
        ops=dict(Counter(node.op_type for node in graph.node).most_common()),
        constants=_list_constants(graph, constants),
        quantized=summarize_quantized(_list_quantized(graph, constants)),
        peak_activation_bytes=None
        if unknown
        else peak_bytes(((list(n.input), list(n.output)) for n in graph.node), sizes, [v.name for v in inputs], [v.name for v in outputs]),
        peak_from=f"not told: {unknown} tensors have no inferred shape" if unknown else BY_LIFETIMES,
        name=metadata.get("name", ""),
        preprocessing=msgspec.json.decode(given, type=Preprocessing) if given else None,
        labels=msgspec.json.decode(metadata["labels"], type=tuple[str, ...]) if "labels" in metadata else (),
        notes=(f"opsets: {opsets}; onnxruntime's own kernels run every op",),
    )


def _shape(value: Any) -> tuple[int, ...]:
    """Return the sizes; −1 for one that is not fixed."""
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in value.type.tensor_type.shape.dim)


def _spec(value: Any) -> TensorSpec:
    shape = _shape(value)
    return TensorSpec(
        name=value.name,
        shape=shape,
        dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
        layout=layout_of(shape),
    )


def _size_bytes(value: Any) -> int:
    sizes = [max(1, n) for n in _shape(value)]
    return math.prod(sizes) * helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize


def _constant_bytes(tensor: Any) -> int:
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _scale_of(node: Any, constants: dict[str, Any]) -> list[float]:
    tensor = constants.get(node.input[1])
    return [] if tensor is None else [float(x) for x in numpy_helper.to_array(tensor).reshape(-1)]


def _list_quantized(graph: Any, constants: dict[str, Any]) -> list[tuple[str, bool, list[float]]]:
    """Return (dtype, whether it is a constant, scales) of each quantized tensor, by its DequantizeLinear or QuantizeLinear."""
    found = []
    for node in graph.node:
        if node.op_type not in QUANTIZING or not (scales := _scale_of(node, constants)):
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            found.append((helper.tensor_dtype_to_np_dtype(constants[node.input[0]].data_type).name, True, scales))
        elif node.op_type == "QuantizeLinear":
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            dtype = "uint8" if zero is None else helper.tensor_dtype_to_np_dtype(zero.data_type).name
            found.append((dtype, False, scales))
    return found


def _list_constants(graph: Any, constants: dict[str, Any]) -> tuple[ConstantTensor, ...]:
    readers: dict[str, str] = {}
    scales: dict[str, int] = {}
    for node in reversed(graph.node):
        for name in node.input:
            readers[name] = node.op_type
        if node.op_type == "DequantizeLinear":  # the reader of weights is the layer, not the op that unpacks them
            readers[node.input[0]] = readers.get(node.output[0], node.op_type)
            scales[node.input[0]] = len(_scale_of(node, constants))
    return tuple(
        ConstantTensor(
            op=readers.get(name, ""),
            shape=tuple(tensor.dims),
            dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type).name,
            size_bytes=_constant_bytes(tensor),
            scales=scales.get(name, 0),
        )
        for name, tensor in constants.items()
    )
