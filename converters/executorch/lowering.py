"""Lower a program to ExecuTorch: ops that XNNPACK takes to XNNPACK, the others to portable kernels, with the reason for each."""

import logging
import operator
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from executorch.runtime import Runtime
from torch import fx

from converters.shared import layer_schemes
from edgecompress.errors import ToolchainError, UnsupportedError, first_line
from edgecompress.faults.remedies import find_toolchain_remedy
from edgecompress.records import UndelegatedOp

WEIGHTS: Final = "quantized_decomposed.dequantize_per_channel.default"
PARTITIONER_LOG: Final = "executorch.backends.xnnpack.partition"
NOT_CORE: Final = re.compile(r"Operator torch\._ops\.([\w.]+) is not in Core ATen")


class _Reasons(logging.Handler):
    """Collects the reasons that XNNPACK's partitioner logs, at level debug, for each node that it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.by_node: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if (node := getattr(record.msg, "node", None)) is not None:
            self.by_node[node.name] = record.msg.reason


def lower_program(program: Any, metadata: dict[str, Any]) -> tuple[bytes, dict[str, int], tuple[UndelegatedOp, ...], int]:
    """Return the file, the count of each op, the ops that XNNPACK does not take, and the bytes planned for tensors outside XNNPACK.

    Args:
        metadata: Constants that methods of the file return, beside `forward`.

    Raises:
        UnsupportedError: An op has no kernel; the message names the op and its layer.
    """
    log, reasons = logging.getLogger(PARTITIONER_LOG), _Reasons()
    log.addHandler(reasons)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=metadata)
        graph = edge.exported_program().graph_module
        outside = [node for node in graph.graph.nodes if _is_op(node) and node.target is not executorch_call_delegate]
        undelegated = _list_undelegated(outside, reasons.by_node)
        inside = [m.original_module.graph_module for m in graph.modules() if isinstance(m, LoweredBackendModule)]
        ops = Counter(_op_name(node) for node in (*outside, *(node for m in inside for node in m.graph.nodes if _is_op(node))))
        made = edge.to_executorch()
    except Exception as error:  # executorch raises errors of many classes
        if found := NOT_CORE.search(str(error)):
            layer = layer_schemes.name_layer(program.graph.nodes, found[1])
            raise UnsupportedError(f"executorch: {layer}there is no {found[1]}; replace that op") from error
        remedy = find_toolchain_remedy(error) or "choose another format"
        raise ToolchainError(f"executorch: lowering failed: {first_line(error)}; {remedy}") from error
    finally:
        log.removeHandler(reasons)
    # Where a program was exported before executorch was imported, lowering drops quantization without a word (torch 2.13).
    if ops[WEIGHTS] < sum(_op_name(node) == WEIGHTS for node in program.graph.nodes):
        raise ToolchainError("executorch: lowering lost the quantization of weights; choose fp32 or format tflite")
    plan = next(method for method in made.executorch_program.execution_plan if method.name == "forward")
    _check_kernels(plan, (*program.graph.nodes, *outside))
    return made.buffer, dict(sorted(ops.items())), undelegated, sum(plan.non_const_buffer_sizes)


def _is_op(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem


def _op_name(node: fx.Node) -> str:
    return str(getattr(node.target, "_op", node.target))


def _list_undelegated(outside: list[fx.Node], reasons: dict[str, str]) -> tuple[UndelegatedOp, ...]:
    found = Counter(
        (_op_name(node), reasons.get(node.name, "XNNPACK has no kernel for it, as executorch's partitioner knows")) for node in outside
    )
    return tuple(UndelegatedOp(op=op, count=count, reason=reason) for (op, reason), count in sorted(found.items()))


def _check_kernels(plan: Any, nodes: Sequence[fx.Node]) -> None:
    known = Runtime.get().operator_registry.operator_names
    for op in plan.operators:
        name = f"{op.name}.{op.overload}" if op.overload else op.name
        if name in known:
            continue
        base = op.name.replace("::", ".")
        raise UnsupportedError(f"executorch: {layer_schemes.name_layer(nodes, base)}there is no kernel for {base}; replace that op")
