"""Which ops of a TFLite file XNNPACK takes, as the interpreter that will run them says, and which stayed float."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from edgecompress.records import UndelegatedOp

BETWEEN_TYPES: Final = {"QUANTIZE", "DEQUANTIZE", "DELEGATE"}
SLOW: Final = {
    "int16x8": "int16 activations are not for XNNPACK: they run on TFLite's own kernels, many times slower than int8-static",
    "int4-weights": "4-bit weights are not for XNNPACK: TFLite unpacks them and computes in float32, slower than fp32; the file is small",
}
COMPUTED_IN: Final = ("float32", "int8")  # types that XNNPACK's kernels compute in


class Plan:
    """The ops of a loaded file: all of them, and those that its interpreter runs by kernels of its own."""

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

        self.unpacked = {int(t) for op in self.left() if op["op_name"] == "DEQUANTIZE" for t in op["outputs"]}

    def left(self) -> list[dict[str, Any]]:
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


def undelegated(plan: Plan) -> tuple[UndelegatedOp, ...]:
    """Return what XNNPACK does not take, and why as far as the file tells."""
    counted = Counter((op["op_name"], _reason(plan, op)) for op in plan.left())
    return tuple(UndelegatedOp(op=name, count=n, reason=reason) for (name, reason), n in sorted(counted.items()))


def _reason(plan: Plan, op: dict[str, Any]) -> str:
    inputs, outputs = ([int(t) for t in op[end] if int(t) in plan.types] for end in ("inputs", "outputs"))
    types = {plan.types[t] for t in (*inputs[:1], *outputs)}
    if "int16" in types:
        return "XNNPACK has no kernels for int16 activations"
    if plan.unpacked & set(inputs):
        return "its weights are unpacked by another op, XNNPACK wants constant ones"
    if strange := sorted(types - set(COMPUTED_IN)):
        return f"XNNPACK has no kernel for it in {', '.join(strange)}"
    kinds = " and ".join(sorted({plan.types[t] for t in inputs}))
    return f"XNNPACK has no kernel for it in {kinds} with these shapes and options"


def notes(plan: Plan, scheme: str) -> Iterator[str]:
    """Yield what a user should know of how the file computes.

    Args:
        scheme: With activations as integers, ops that stayed float are told.
    """
    if note := SLOW.get(scheme):
        yield note
    computing = [op for op in plan.ops if op["op_name"] not in BETWEEN_TYPES]
    stayed = Counter(op["op_name"] for op in computing if np.float32 in op["result_types"])
    if scheme in ("int8-static", "int16x8") and stayed:
        yield f"{stayed.total()} of {len(computing)} ops stayed float32: {', '.join(f'{name} ×{n}' for name, n in sorted(stayed.items()))}"
