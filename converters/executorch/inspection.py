"""Describe the contents of an ExecuTorch file: its program, and the graphs in it for XNNPACK. Nothing is loaded or run."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from executorch.backends.xnnpack import serialization
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DataLocation, DelegateCall, KernelCall

from converters.shared.tensor_summary import layout_of, peak_bytes, summarize_quantized
from edgecompress.records import ConstantTensor, Delegation, Inspection, Preprocessing, TensorSpec, UndelegatedOp

XNNPACK: Final = "XnnpackBackend"
METHOD: Final = "forward"
DTYPES: Final = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
                 "char": "int8", "byte": "uint8", "bool": "bool"}  # fmt: skip
PLANNED: Final = "memory planned in the file for tensors outside XNNPACK, and the tensors inside it alive at once, at most"


@dataclass(frozen=True)
class _Graph:
    """One graph for XNNPACK."""

    ops: Counter[str]
    constants: tuple[ConstantTensor, ...]
    quantized: tuple[tuple[str, bool, list[float]], ...]
    peak_bytes: int


def inspect(content: bytes) -> Inspection:
    """Return the contents of an ExecuTorch file."""
    file = deserialize_pte_binary(content)
    plans = {plan.name: plan for plan in file.program.execution_plan}
    plan = plans[METHOD]
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
    kernels = Counter(_operator_name(plan.operators[call.op_index]) for call in calls if isinstance(call, KernelCall))
    pieces = [plan.delegates[call.delegate_index] for call in calls if isinstance(call, DelegateCall)]
    graphs = [_read_graph(file, piece) for piece in pieces if piece.id == XNNPACK]
    inside = sum((graph.ops for graph in graphs), Counter())
    others = sorted({piece.id for piece in pieces} - {XNNPACK})
    texts = {name: _text_of(each) for name, each in plans.items() if name != METHOD}
    given = texts.get("preprocessing")
    constants = tuple(constant for graph in graphs for constant in graph.constants)
    return Inspection(
        path="",
        format="",
        sha256="",
        size_bytes=0,
        weights_bytes=sum(c.size_bytes for c in constants) + sum(len(buffer.storage) for buffer in file.program.constant_buffer),
        inputs=_tensor_specs(plan, plan.inputs, "input"),
        outputs=_tensor_specs(plan, plan.outputs, "output"),
        ops=dict((kernels + inside).most_common()),
        constants=constants,
        quantized=summarize_quantized(found for graph in graphs for found in graph.quantized),
        delegation=Delegation(
            partitions=len(graphs),
            taken=inside.total(),
            undelegated=tuple(
                UndelegatedOp(op=op, count=n, reason="the file runs it by a kernel of ExecuTorch's own")
                for op, n in sorted(kernels.items())
            ),
        ),
        peak_activation_bytes=sum(plan.non_const_buffer_sizes) + max((graph.peak_bytes for graph in graphs), default=0),
        peak_from=PLANNED,
        name=texts.get("name", ""),
        preprocessing=msgspec.json.decode(given, type=Preprocessing) if given else None,
        labels=msgspec.json.decode(texts["labels"], type=tuple[str, ...]) if texts.get("labels") else (),
        notes=(f"also delegated: to {', '.join(others)}, whose ops are not told",) if others else (),
    )


def _operator_name(operator: Any) -> str:
    return f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)


def _text_of(plan: Any) -> str:
    """Return the text that a method without inputs returns, "" where it returns something else."""
    value = plan.values[plan.outputs[0]].val if plan.outputs else None
    return str(getattr(value, "string_val", ""))


def _tensor_specs(plan: Any, indices: Any, name: str) -> tuple[TensorSpec, ...]:
    tensors = [plan.values[i].val for i in indices]
    return tuple(
        TensorSpec(
            name=f"{name}_{k}",
            shape=tuple(tensor.sizes),
            dtype=DTYPES.get(tensor.scalar_type.name.lower(), tensor.scalar_type.name.lower()),
            layout=layout_of(tensor.sizes),
        )
        for k, tensor in enumerate(tensors)
        if hasattr(tensor, "sizes")
    )


def _read_graph(file: Any, delegate: Any) -> _Graph:
    if delegate.processed.location != DataLocation.INLINE:
        raise ValueError("a delegate's data lie outside of the program")
    graph = _decompile(bytes(file.program.backend_delegate_data[delegate.processed.index].data))
    nodes = [(node["xnode_union_type"], node["xnode_union"]) for node in graph["xnodes"]]
    values = {}
    for value in graph["xvalues"]:
        body = value["xvalue_union"]
        tensor = body.get("tensor_value", body)
        values[tensor["id_out"]] = (tensor, body.get("quant_params_type", ""), body.get("quant_params", {}))
    readers = {t: kind for kind, node in reversed(nodes) for t in _input_ids(node)}
    found = [
        (kind, tensor["constant_buffer_idx"] > 0, scales)
        for tensor, _, quant in values.values()
        for kind, scales in [(_dtype(tensor), _scales(file, graph, quant))]
        if scales
    ]
    constants = tuple(
        ConstantTensor(
            op=readers.get(t, ""),
            shape=tuple(tensor["dims"]),
            dtype=_dtype(tensor),
            size_bytes=_size_bytes(tensor),
            scales=len(_scales(file, graph, quant)),
        )
        for t, (tensor, _, quant) in values.items()
        if tensor["constant_buffer_idx"] > 0
    )
    sizes = {t: _size_bytes(tensor) for t, (tensor, _, _) in values.items() if not tensor["constant_buffer_idx"] and not tensor["flags"]}
    return _Graph(
        ops=Counter(kind for kind, _ in nodes),
        constants=constants,
        quantized=tuple(found),
        peak_bytes=peak_bytes([(_input_ids(node), _output_ids(node)) for _, node in nodes], sizes, [], []),
    )


def _decompile(data: bytes) -> dict[str, Any]:
    """Return XNNPACK's flatbuffer as the JSON of flatc, which works in the current directory."""
    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    Path("schema.fbs").write_bytes(resources.files(serialization).joinpath("schema.fbs").read_bytes())
    Path("graph.bin").write_bytes(data[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
    _flatc_decompile(".", "schema.fbs", "graph.bin", ["--raw-binary"])
    text = re.sub(rb": (-?)inf\b", rb": \1Infinity", Path("graph.json").read_bytes())  # flatc's JSON is not Python's
    made: dict[str, Any] = json.loads(text)
    return made


def _input_ids(node: dict[str, Any]) -> list[int]:
    return [value for key, value in node.items() if key.endswith("_id") and not key.startswith("output")]


def _output_ids(node: dict[str, Any]) -> list[int]:
    return [value for key, value in node.items() if key.endswith("_id") and key.startswith("output")]


def _dtype(tensor: dict[str, Any]) -> str:
    """`xnn_datatype_qcint8` → `qcint8`."""
    return str(tensor["datatype"]).removeprefix("xnn_datatype_")


def _size_bytes(tensor: dict[str, Any]) -> int:
    kind = _dtype(tensor)
    bits = next((bits for name, bits in (("int4", 4), ("int8", 8), ("int32", 32), ("fp16", 16)) if name in kind), 32)
    return (math.prod(tensor["dims"]) * bits + 7) // 8


def _scales(file: Any, graph: dict[str, Any], quant: dict[str, Any]) -> list[float]:
    """Return the scales of a tensor: one, one for each channel, or none; those of channels may lie in the file's constant data."""
    if not isinstance(found := quant.get("scale"), list):
        return [found] if found else []
    if found or not quant.get("num_scales"):
        return found
    key = graph["constant_data"][quant["scale_buffer_idx"]]["named_key"]
    entry = file.named_data.pte_data[key]
    return [float(x) for x in np.frombuffer(file.named_data.buffers[entry.buffer_index], np.float32)]
