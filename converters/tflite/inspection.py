"""Describe the contents of a TFLite file: its flatbuffer, its metadata, and the ops that the interpreter gives to XNNPACK."""

import math
from collections import Counter
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from converters.shared.tensor_summary import BY_LIFETIMES, layout_of, peak_bytes, summarize_quantized
from converters.tflite import metadata_reader
from converters.tflite.delegation import Delegates, list_undelegated
from edgecompress.records import ConstantTensor, Delegation, Inspection, TensorSpec

OPS: Final = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
TYPES: Final = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
BITS: Final = {"int4": 4, "int2": 2, "bool": 8, "complex64": 64, "complex128": 128}


def inspect(content: bytes) -> Inspection:
    """Return the contents of a TFLite file."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    delegates = Delegates(content)  # first: the interpreter checks the whole flatbuffer
    sizes = {t: _size_bytes(tensor) for t, tensor in enumerate(graph.tensors) if not _is_constant(model, tensor)}
    metadata = metadata_reader.read_metadata(content, model)
    remaining = list_undelegated(delegates)
    steps = [(_indices(op.inputs), _indices(op.outputs)) for op in graph.operators]
    return Inspection(
        path="",
        format="",
        sha256="",
        size_bytes=0,
        weights_bytes=sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None) - metadata.size_bytes,
        inputs=_tensor_specs(graph, graph.inputs, _signature_names(content, "inputs")),
        outputs=_tensor_specs(graph, graph.outputs, _signature_names(content, "outputs")),
        ops=dict(Counter(_op_name(model, op) for part in model.subgraphs for op in part.operators).most_common()),
        constants=_list_constants(model, graph),
        quantized=summarize_quantized((TYPES[x.type], _is_constant(model, x), _scales(x)) for x in graph.tensors if len(_scales(x))),
        delegation=Delegation(
            partitions=len(delegates.delegates), taken=len(delegates.ops) - sum(found.count for found in remaining), undelegated=remaining
        ),
        peak_activation_bytes=peak_bytes(steps, sizes, _indices(graph.inputs), _indices(graph.outputs)),
        peak_from=BY_LIFETIMES,
        name=metadata.name,
        preprocessing=metadata.preprocessing,
        labels=metadata.labels,
        notes=(f"{len(model.subgraphs)} subgraphs; tensors and XNNPACK are those of the first",) if len(model.subgraphs) > 1 else (),
    )


def _indices(tensors: Any) -> list[int]:
    return [int(t) for t in tensors]


def _signature_names(content: bytes, end: str) -> dict[int, str]:
    """Return the names of the signature's inputs or outputs, by tensor."""
    signatures = Interpreter(model_content=content, num_threads=1)._get_full_signature_list()
    return {int(t): name for signature in list(signatures.values())[:1] for name, t in signature[end].items()}


def _tensor_specs(graph: Any, indices: Any, names: dict[int, str]) -> tuple[TensorSpec, ...]:
    made = []
    for t in map(int, indices):
        tensor, scales = graph.tensors[t], _scales(graph.tensors[t])
        shape = _shape(tensor)
        made.append(
            TensorSpec(
                name=names.get(t, (tensor.name or b"").decode(errors="replace")),
                shape=shape,
                dtype=TYPES[tensor.type],
                layout=layout_of(shape),
                scale=scales[0] if len(scales) else None,
                zero_point=int(tensor.quantization.zeroPoint[0]) if len(scales) else None,
            )
        )
    return tuple(made)


def _list_constants(model: Any, graph: Any) -> tuple[ConstantTensor, ...]:
    readers: dict[int, str] = {}
    for op in graph.operators:
        for t in op.inputs:
            readers.setdefault(int(t), _op_name(model, op))
    return tuple(
        ConstantTensor(
            op=readers.get(t, ""),
            shape=_shape(tensor),
            dtype=TYPES[tensor.type],
            size_bytes=_size_bytes(tensor),
            scales=len(_scales(tensor)),
        )
        for t, tensor in enumerate(graph.tensors)
        if _is_constant(model, tensor)
    )


def _op_name(model: Any, op: Any) -> str:
    code = model.operatorCodes[op.opcodeIndex]
    builtin = OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return builtin if builtin != "CUSTOM" else f"CUSTOM {(code.customCode or b'').decode(errors='replace')}"


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.shape) if tensor.shape is not None else ()


def _size_bytes(tensor: Any) -> int:
    kind = TYPES[tensor.type]
    bits = BITS.get(kind) or 8 * (np.dtype(kind).itemsize if kind not in ("string", "resource", "variant") else 1)
    return (math.prod(_shape(tensor)) * bits + 7) // 8


def _scales(tensor: Any) -> list[float]:
    found = tensor.quantization.scale if tensor.quantization is not None else None
    return [float(scale) for scale in found] if found is not None else []
