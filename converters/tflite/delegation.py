"""List the ops of a TFLite file that XNNPACK takes, by asking the interpreter, and the ops that stayed float."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from edgecompress.records import UndelegatedOp
from edgecompress.targets import SCHEMES

BETWEEN_TYPES: Final = {"QUANTIZE", "DEQUANTIZE", "DELEGATE"}
SLOW_INT16: Final = "int16 activations are not for XNNPACK: they run on TFLite's own kernels, many times slower than int8-static"
SLOW_INT4: Final = "4-bit weights are not for XNNPACK: TFLite unpacks them and computes in float32, slower than fp32; the file is small"
XNNPACK_TYPES: Final = ("float32", "int8")


class Delegates:
    """The ops of a loaded file, split into those of its delegates and those of the interpreter's own kernels."""

    def __init__(self, content: bytes) -> None:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        ops = interpreter._get_ops_details()
        self.delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        self.ops = [op for op in ops if op["op_name"] != "DELEGATE"]
        self.types = {detail["index"]: np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details()}
        tensors = flatbuffer_utils.read_model_from_bytearray(bytearray(content)).subgraphs[0].tensors
        self.types |= {t: "int4" for t, tensor in enumerate(tensors) if tensor.type == schema.TensorType.INT4}  # the interpreter says int8
        self.outputs = [detail["index"] for detail in interpreter.get_output_details()]

        self.unpacked = {int(t) for op in self.remaining_ops() if op["op_name"] == "DEQUANTIZE" for t in op["outputs"]}

    def remaining_ops(self) -> list[dict[str, Any]]:
        """Return the ops that stay outside of the delegates, in the order of the file.

        An op that was taken still stands in the list; its results come from a delegate, so nothing asks for it.
        """
        makers = {int(t): op for op in (*self.ops, *self.delegates) for t in op["outputs"]}  # a delegate before what it replaced
        wanted, needed = list(self.outputs), {}
        while wanted:
            maker = makers.get(wanted.pop())
            if maker is not None and maker["index"] not in needed:
                needed[maker["index"]] = maker
                wanted += [int(t) for t in maker["inputs"] if t >= 0]
        return [op for op in self.ops if op["index"] in needed]


def list_undelegated(file: Delegates) -> tuple[UndelegatedOp, ...]:
    """Return the ops that XNNPACK does not take, with the reason as far as the file tells it."""
    counted = Counter((op["op_name"], _explain_undelegated(file, op)) for op in file.remaining_ops())
    return tuple(UndelegatedOp(op=name, count=n, reason=reason) for (name, reason), n in sorted(counted.items()))


def _explain_undelegated(file: Delegates, op: dict[str, Any]) -> str:
    inputs, outputs = ([int(t) for t in op[end] if int(t) in file.types] for end in ("inputs", "outputs"))
    types = {file.types[t] for t in (*inputs[:1], *outputs)}
    if "int16" in types:
        return "XNNPACK has no kernels for int16 activations"
    if file.unpacked & set(inputs):
        return "its weights are unpacked by another op, XNNPACK wants constant ones"
    if strange := sorted(types - set(XNNPACK_TYPES)):
        return f"XNNPACK has no kernel for it in {', '.join(strange)}"
    kinds = " and ".join(sorted({file.types[t] for t in inputs}))
    return f"XNNPACK has no kernel for it in {kinds} with these shapes and options"


def make_notes(file: Delegates, scheme: str) -> Iterator[str]:
    """Yield notes for the user on slow schemes, and on ops that stayed float in a scheme of integer activations."""
    known = SCHEMES[scheme]
    if known.activation_bits == 16:
        yield SLOW_INT16
    if known.weight_bits == 4:
        yield SLOW_INT4
    computing = [op for op in file.ops if op["op_name"] not in BETWEEN_TYPES]
    stayed = Counter(op["op_name"] for op in computing if np.float32 in op["result_types"])
    if known.has_static_activations and stayed:
        yield f"{stayed.total()} of {len(computing)} ops stayed float32: {', '.join(f'{name} ×{n}' for name, n in sorted(stayed.items()))}"
