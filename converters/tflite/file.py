"""Read a TFLite file: the ops of a layer, the tensors that it takes and returns, and the number of its ops."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from converters.shared.layer_schemes import layer_of, scheme_of
from edgecompress.errors import ToolchainError, UnsupportedError, first_line
from edgecompress.network.constants import get_constant
from edgecompress.network.exported import example_inputs, example_outputs
from edgecompress.network.layer_kinds import WEIGHTED_OPS
from edgecompress.network.subgraph import enclosing_modules
from edgecompress.records import ConversionRequest, TensorSpec

SIGNATURE: Final = "serving_default"
IMAGE_AXES: Final = 4
OP_NAMES: Final = {code: name.lower() for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
LAYER_OPS: Final = {"conv_2d", "depthwise_conv_2d", "transpose_conv", "fully_connected", "batch_matmul"}


def to_layout(x: np.ndarray, layout: str) -> np.ndarray:
    """Return images `(n, c, h, w)` in `layout`, other arrays unchanged."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "NHWC" and x.ndim == IMAGE_AXES else x


def count_ops(content: bytes) -> dict[str, int]:
    """Return the count of each op by TFLite's names, the most frequent first."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    return dict(Counter(op_name(model, op).upper() for graph in model.subgraphs for op in graph.operators).most_common())


def op_name(model: Any, op: Any) -> str:
    code = model.operatorCodes[op.opcodeIndex]
    return OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def find_layer_ops(content: bytes, program: Any, request: ConversionRequest) -> dict[str, list[str]]:
    """Return, for each scheme that some layers have instead of the file's, the names of the output tensors of their ops.

    An op belongs to the layer whose weights it reads: the same numbers, in whatever order the lowering has put them.

    Args:
        content: A float file of which `name_tensors` has named the tensors.

    Raises:
        UnsupportedError: No op reads such a layer's weights as they are.
    """
    ops: dict[str, list[str]] = {}
    for name, digest in _iterate_weighted_ops(content):
        ops.setdefault(digest, []).append(name)
    found: dict[str, list[str]] = {}
    graph = program.module(check_guards=False)
    for node in graph.graph.nodes:
        scheme = scheme_of(enclosing_modules(node), request)
        constants = (
            [a for a in node.all_input_nodes if a.op == "get_attr"] if scheme != request.scheme and node.target in WEIGHTED_OPS else []
        )
        for value in (get_constant(graph, str(a.target)) for a in constants[:1]):
            if (digest := _hash_weights(value.numpy())) not in ops:
                raise UnsupportedError(f"tflite: {layer_of(node)}: no op of the file reads its weights as they are; leave its scheme out")
            found.setdefault(scheme, []).extend(ops[digest])
    return found


def _iterate_weighted_ops(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the name of each op's output tensor and the hash of its weights."""
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in model.subgraphs:
        for op in graph.operators:
            for t in op.inputs if op_name(model, op) in LAYER_OPS else ():
                data = model.buffers[graph.tensors[t].buffer].data if t >= 0 else None
                if data is not None and len(data) and graph.tensors[t].type == schema.TensorType.FLOAT32:
                    yield graph.tensors[op.outputs[0]].name.decode(), _hash_weights(np.asarray(data, np.uint8).view(np.float32))


def _hash_weights(weights: np.ndarray) -> str:
    return hashlib.sha256(np.sort(weights + 0.0, axis=None).tobytes()).hexdigest()  # −0.0, which sorts as 0.0, becomes 0.0


def describe_tensors(
    content: bytes, program: Any, layout: str, sample: Sequence[np.ndarray] = ()
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Load the file as a phone does, run it once, and return inputs and outputs as it has them, in the program's order.

    Args:
        sample: Real inputs in the layout of the file, where any are at hand; () runs the file on zeros.

    Raises:
        ToolchainError: They are not what the program takes and gives.
        UnsupportedError: The runtime has no kernel for an op in the types it has in the file.
    """
    interpreter = Interpreter(model_content=content, num_threads=1)
    signatures = interpreter.get_signature_list()
    if SIGNATURE not in signatures:
        raise ToolchainError(f"tflite: the file has signatures {list(signatures)}, {SIGNATURE} is missing; install the tested versions")
    try:
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner(SIGNATURE)
        inputs = runner.get_input_details()
        names = sorted(inputs, key=_trailing_number)
        runner(**{name: _choose_probe(inputs[name], sample[i] if i < len(sample) else None) for i, name in enumerate(names)})
    except RuntimeError as error:
        raise UnsupportedError(f"tflite: the runtime cannot run the file: {first_line(error)}; take another route or scheme") from error
    return (
        _read_specs(inputs, example_inputs(program), layout),
        _read_specs(runner.get_output_details(), example_outputs(program), layout),
    )


def _choose_probe(detail: dict[str, Any], x: np.ndarray | None) -> np.ndarray:
    """Return a value for an input: that of a real sample, since int8 kernels refuse to divide by what zeros make 0, e.g. a length."""
    zeros = np.zeros(detail["shape"], detail["dtype"])
    return zeros if x is None or x.shape != zeros.shape or detail["quantization"][0] else x.astype(detail["dtype"])


def _read_specs(details: dict[str, dict[str, Any]], expected: tuple[Any, ...], layout: str) -> tuple[TensorSpec, ...]:
    found = tuple(_read_spec(name, details[name], layout) for name in sorted(details, key=_trailing_number))
    wanted = [to_layout(x.numpy(), layout).shape for x in expected]
    if [spec.shape for spec in found] != wanted:
        raise ToolchainError(f"tflite: the file has tensors of shape {[s.shape for s in found]}, {wanted} were due; take another route")
    return found


def _read_spec(name: str, detail: dict[str, Any], layout: str) -> TensorSpec:
    shape = tuple(int(n) for n in detail["shape"])
    scale, zero_point = detail["quantization"]
    quantized = np.issubdtype(detail["dtype"], np.integer) and scale > 0
    return TensorSpec(
        name=name,
        shape=shape,
        dtype=np.dtype(detail["dtype"]).name,
        layout=layout if len(shape) == IMAGE_AXES else "",
        scale=float(scale) if quantized else None,
        zero_point=int(zero_point) if quantized else None,
    )


def _trailing_number(name: str) -> int:
    """`args_10` comes after `args_9`."""
    return int(name.rpartition("_")[2])
