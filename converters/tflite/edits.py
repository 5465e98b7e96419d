"""Edit a TFLite file that a converter made: shorten the names of tensors, and correct faults of the converter."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from converters.tflite.file import LAYER_OPS, op_name

INT32: Final = np.iinfo(np.int32)


def edit_file(content: bytes, *changes: Callable[[Any], None]) -> bytes:
    """Return the file after changes, each of which edits the parsed model in place."""
    model = _parse(content)
    for change in changes:
        change(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def name_tensors(model: Any) -> None:
    """Name each tensor by the op that makes it, each constant by the op that reads it: `conv_2d_3`, `conv_2d_3/1`.

    Converters join the names of wrappers and passes into names of hundreds of letters: one twentieth of an int8 file.
    """
    for graph in model.subgraphs:
        names: dict[int, str] = {}
        for i, op in enumerate(graph.operators):
            name = f"{op_name(model, op)}_{i}"
            outputs = [int(t) for t in op.outputs]
            names |= {t: name if len(outputs) == 1 else f"{name}:{k}" for k, t in enumerate(outputs)}
            for k, t in enumerate(op.inputs):
                names.setdefault(int(t), f"{name}/{k}")
        names |= {int(t): f"input_{k}" for k, t in enumerate(graph.inputs)} | {int(t): f"output_{k}" for k, t in enumerate(graph.outputs)}
        for t, tensor in enumerate(graph.tensors):
            tensor.name = names.get(t, f"unused_{t}")


def unshare_weights(model: Any) -> None:
    """Give ops of different kinds that share weights a copy each, since each kind has its scales along another axis.

    Converters store equal constants once, and factors of a symmetric kernel may be equal.
    """
    for graph in model.subgraphs:
        kinds: dict[int, str] = {}
        for op in graph.operators:
            kind, t = op_name(model, op), int(op.inputs[1]) if len(op.inputs) > 1 else -1
            if kind not in LAYER_OPS or t < 0 or kinds.setdefault(t, kind) == kind:
                continue
            own = copy.copy(graph.tensors[t])
            own.buffer = len(model.buffers)
            model.buffers.append(copy.copy(model.buffers[graph.tensors[t].buffer]))
            graph.tensors.append(own)
            op.inputs[1] = len(graph.tensors) - 1


def fill_zero_scales(model: Any) -> None:
    """Replace a scale of 0, which zeros get and of which the runtime dies, by the scale of the op's output."""
    for graph in model.subgraphs:
        for op in graph.operators:
            for tensor in (graph.tensors[t] for t in op.inputs if t >= 0):
                scales = tensor.quantization.scale if tensor.quantization is not None else None
                if scales is not None and not np.all(scales):
                    made = getattr(graph.tensors[op.outputs[0]].quantization, "scale", None)
                    tensor.quantization.scale = [scale or (1.0 if made is None else made[0]) for scale in scales]


def widen_biases(content: bytes) -> Callable[[Any], None]:
    """Return the change that restores 64-bit biases, which 16-bit activations have, to their values in the float file `content`.

    ai-edge-quantizer clips them to 32 bits. Their scale is that of the input times that of the weights. Where that was 10⁻⁹, a bias of 3.5
    became 2.
    """
    given = {tensor.name: data.view(np.float32) for tensor, data in _iterate_constants(_parse(content), schema.TensorType.FLOAT32)}

    def change(model: Any) -> None:
        for tensor, data in _iterate_constants(model, schema.TensorType.INT64):
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            if scales is not None and tensor.name in given and np.isin(data.view(np.int64), (INT32.min, INT32.max)).any():
                wide = np.rint(given[tensor.name].astype(np.float64) / np.asarray(scales, np.float64)).astype(np.int64)
                model.buffers[tensor.buffer].data = wide.view(np.uint8)

    return change


def _iterate_constants(model: Any, kind: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the tensors of a type that hold data, with their bytes."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if tensor.type == kind and data is not None and len(data):
                yield tensor, np.asarray(data, np.uint8)


def _parse(content: bytes) -> Any:
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))
