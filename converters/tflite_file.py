"""What to_tflite.py does with a finished TFLite file: name its tensors, read back what it takes and gives, find what stayed float."""

from collections import Counter
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from edgecompress.errors import ToolchainError
from edgecompress.program import example_inputs, example_outputs
from edgecompress.records import TensorSpec

SIGNATURE: Final = "serving_default"
IMAGE_AXES: Final = 4
OP_NAMES: Final = {code: name.lower() for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
BETWEEN_TYPES: Final = {"QUANTIZE", "DEQUANTIZE", "DELEGATE"}


def channels_last(x: np.ndarray) -> np.ndarray:
    """Return images `(n, c, h, w)` as `(n, h, w, c)`, anything else as it is."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == IMAGE_AXES else x


def name_tensors(content: bytes) -> bytes:
    """Name each tensor by the op that makes it, each constant by the op that reads it: `conv_2d_3`, `conv_2d_3/1`.

    Converters join the names of wrappers and passes into names of hundreds of letters: one twentieth of an int8 file.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        names: dict[int, str] = {}
        for i, op in enumerate(graph.operators):
            code = model.operatorCodes[op.opcodeIndex]
            name = f"{OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]}_{i}"
            outputs = [int(t) for t in op.outputs]
            names |= {t: name if len(outputs) == 1 else f"{name}:{k}" for k, t in enumerate(outputs)}
            for k, t in enumerate(op.inputs):
                names.setdefault(int(t), f"{name}/{k}")
        names |= {int(t): f"input_{k}" for k, t in enumerate(graph.inputs)} | {int(t): f"output_{k}" for k, t in enumerate(graph.outputs)}
        for t, tensor in enumerate(graph.tensors):
            tensor.name = names.get(t, f"unused_{t}")
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def describe(content: bytes, program: Any, *, quantized: bool) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """Return inputs and outputs as the file has them, in the program's order, and notes.

    Args:
        quantized: Whether every op was meant to compute in int8.

    Raises:
        ToolchainError: They are not what the program takes and gives.
    """
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    signatures = interpreter.get_signature_list()
    if SIGNATURE not in signatures:
        raise ToolchainError(f"tflite: the file has signatures {list(signatures)}, {SIGNATURE} is missing; install the tested versions")
    runner = interpreter.get_signature_runner(SIGNATURE)
    inputs = _specs(runner.get_input_details(), example_inputs(program))
    outputs = _specs(runner.get_output_details(), example_outputs(program))
    return inputs, outputs, _stayed_float(interpreter) if quantized else ()


def _specs(details: dict[str, dict[str, Any]], expected: tuple[Any, ...]) -> tuple[TensorSpec, ...]:
    found = tuple(_spec(name, details[name]) for name in sorted(details, key=_trailing_number))
    wanted = [channels_last(x.numpy()).shape for x in expected]
    if [spec.shape for spec in found] != wanted:
        raise ToolchainError(f"tflite: the file has tensors of shape {[s.shape for s in found]}, {wanted} were due; take another route")
    return found


def _spec(name: str, detail: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(n) for n in detail["shape"])
    scale, zero_point = detail["quantization"]
    quantized = np.issubdtype(detail["dtype"], np.integer) and scale > 0
    return TensorSpec(
        name=name,
        shape=shape,
        dtype=np.dtype(detail["dtype"]).name,
        layout="NHWC" if len(shape) == IMAGE_AXES else "",
        scale=float(scale) if quantized else None,
        zero_point=int(zero_point) if quantized else None,
    )


def _trailing_number(name: str) -> int:
    """`args_10` comes after `args_9`."""
    return int(name.rpartition("_")[2])


def _stayed_float(interpreter: Interpreter) -> tuple[str, ...]:
    ops = [op for op in interpreter._get_ops_details() if op["op_name"] not in BETWEEN_TYPES]
    left = Counter(op["op_name"] for op in ops if np.float32 in op["result_types"])
    if not left:
        return ()
    return (f"{left.total()} of {len(ops)} ops stayed float32: {', '.join(f'{name} ×{n}' for name, n in sorted(left.items()))}",)
