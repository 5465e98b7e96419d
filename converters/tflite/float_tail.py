"""Find the ops of a float TFLite file that stay float, because ranges meet there that integers cannot hold together.

The program's nodes are marked, but lowering joins some of them and moves others: a factor after a convolution becomes part of its weights.
The tail is therefore found in the file, by the rule that found it in the program.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils
from torch import Tensor

from converters.tflite.file import LAYER_OPS, SIGNATURE, op_name
from edgecompress.quantization.float_tail import TAIL_SAMPLES, Asked, TailOp, choose_axis, find_tail, peaks_of

JOINS: Final = {"concatenation", "pack"}
ARITHMETIC: Final = {"add", "sub", "mul", "div", "select", "select_v2", "dynamic_update_slice", "scatter_nd"}
BODY: Final = {
    "max_pool_2d", "average_pool_2d", "batch_matmul", "unidirectional_sequence_lstm", "embedding_lookup", "l2_normalization",
}  # fmt: skip


def find_float_ops(content: bytes, samples: Sequence[list[np.ndarray]], bits: int) -> list[str]:
    """Return the names of the output tensors of the ops that stay float.

    Args:
        content: A float file of which `name_tensors` has named the tensors.
        samples: The inputs of each calibration sample, in the file's layout.
        bits: Of activations.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    makers = {int(t): names[op.outputs[0]] for op in graph.operators for t in op.outputs}
    ops = [_read_op(model, op, names, makers) for op in graph.operators]
    outputs = [makers[int(t)] for t in graph.outputs if int(t) in makers]
    tail, _ = find_tail(ops, outputs, lambda asked: _measure_peaks(content, names, samples, asked), bits)
    return [op.name for op in ops if op.name in tail]


def _read_op(model: Any, op: Any, names: list[str], makers: dict[int, str]) -> TailOp:
    graph, kind = model.subgraphs[0], op_name(model, op)
    name, made = names[op.outputs[0]], graph.tensors[op.outputs[0]]
    read = [int(t) for t in op.inputs if t >= 0]
    inputs = tuple(makers[t] for t in read if t in makers)
    is_float, rank = made.type == schema.TensorType.FLOAT32, len(made.shape)
    if kind in BODY or (kind in LAYER_OPS and (len(read) < 2 or read[1] in makers)):
        return TailOp(name, inputs, "body")
    if kind in LAYER_OPS:
        return TailOp(name, inputs, "layer", rank - 1)
    if not is_float or not (kind in JOINS or kind in ARITHMETIC):
        return TailOp(name, inputs)
    if kind in JOINS:
        return TailOp(name, inputs, "join", parts=tuple(names[t] for t in read))
    constants = [graph.tensors[t].shape for t in read if t not in makers and t not in graph.inputs]
    return TailOp(name, inputs, "arithmetic", choose_axis(made.shape, constants, rank - 1))


def _measure_peaks(
    content: bytes, names: list[str], samples: Sequence[list[np.ndarray]], asked: Asked
) -> dict[tuple[str, int | None], Tensor]:
    """Run the file, and return the largest absolute values of its tensors over all samples."""
    without = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate keeps no tensor between its ops
    interpreter = Interpreter(
        model_content=content, num_threads=1, experimental_op_resolver_type=without, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    inputs = interpreter.get_signature_runner(SIGNATURE).get_input_details()
    places = {name: names.index(name) for name, _ in asked}
    rows = []
    for sample in samples[:TAIL_SAMPLES]:
        for i, x in enumerate(sample):
            detail = inputs[f"args_{i}"]
            interpreter.set_tensor(detail["index"], x.astype(detail["dtype"]))
        interpreter.invoke()
        rows.append([peaks_of(torch.from_numpy(interpreter.get_tensor(places[name])), axis) for name, axis in asked])
    return {question: torch.stack(found).amax(0) for question, found in zip(asked, zip(*rows, strict=True), strict=True)}
