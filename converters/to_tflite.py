"""Convert an exported program to TFLite: a program, see README.md beside it.

Route litert-torch (the default) lowers the program itself and quantizes the float file with ai-edge-quantizer. Route onnx2tf goes by ONNX
and TensorFlow. Both give files that take images as NHWC, which is what TFLite kernels compute in, and float32 inputs and outputs in
every scheme: the quantize and dequantize steps run inside the XNNPACK delegate and cost microseconds.
"""

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.conversion import serve
from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

SCHEMES = ("fp32", "fp16", "int8-dynamic", "int8-static")
EXTRAS = {"litert-torch": "tflite", "onnx2tf": "onnx2tf"}
IMAGE_AXES = 4


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the TFLite file and what it takes and gives."""
    route = request.route or "litert-torch"
    if request.scheme not in SCHEMES:
        raise ConfigError(f"tflite: unknown scheme {request.scheme!r}; choose from {', '.join(SCHEMES)}")
    if route not in ROUTES:
        raise ConfigError(f"tflite: unknown route {route!r}; choose from {', '.join(ROUTES)}")
    from edgecompress.program import read_program

    program = read_program(Path(request.program))
    samples = _calibration(request, program)
    content, notes = ROUTES[route](program, request.scheme, samples)
    return content, _describe(content, program, route, notes)


def by_litert_torch(program: Any, scheme: str, samples: list[list[np.ndarray]]) -> tuple[bytes, list[str]]:
    """Lower with litert-torch, then quantize with ai-edge-quantizer.

    Args:
        samples: A list of inputs for each sample, NHWC.
    """
    import litert_torch
    import torch

    from edgecompress.program import example_inputs, first_line

    inputs = example_inputs(program)
    images = [i for i, x in enumerate(inputs) if x.ndim == IMAGE_AXES]
    maps = [i for i, value in enumerate(_outputs(program)) if value.ndim == IMAGE_AXES]
    module = litert_torch.to_channel_last_io(program.module(check_guards=False), args=images, outputs=maps)
    arguments = tuple(x.permute(0, 2, 3, 1).contiguous() if i in images else x for i, x in enumerate(inputs))
    try:
        with torch.no_grad():
            edge = litert_torch.convert(module, arguments)
    except Exception as error:  # MLIR, lowering and torch errors of many classes
        raise _lowering_error(error, first_line(error)) from error
    return _quantize(bytes(edge.model_content()), scheme, samples), []


def _lowering_error(error: Exception, reason: str) -> Exception:
    """Tell an op that the route lacks from a failure of the toolchain."""
    import re

    if found := re.search(
        r"(?:Lowering not found|No lowering|not (?:supported|implemented)|Unsupported)[^\n]*?(aten[.:\w]+|prims[.:\w]+)", str(error)
    ):
        return UnsupportedError(f"tflite: litert-torch has no lowering for {found[1]}; replace that op, or use route onnx2tf")
    return ToolchainError(f"tflite: litert-torch failed: {reason}; try route onnx2tf")


def _quantize(content: bytes, scheme: str, samples: list[list[np.ndarray]]) -> bytes:
    """Quantize a float TFLite file."""
    if scheme == "fp32":
        return content
    from ai_edge_quantizer import calibrator, qtyping, quantizer
    from ai_edge_quantizer.utils import qsv_utils

    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    tool = quantizer.Quantizer(content)
    statistics = None
    if scheme == "fp16":
        tool.add_weight_only_config(".*", everything, 16, qtyping.QuantGranularity.TENSORWISE, "float_casting")
    elif scheme == "int8-dynamic":
        tool.add_dynamic_config(".*", everything, 8)
    else:
        tool.add_static_config(".*", everything, 8, 8)
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            tool.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        # The quantizer's own update is a moving average of each sample's range, which forgets the widest samples and clips them.
        observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        names = sorted(_signature(content)["inputs"], key=_trailing_number)
        observer.calibrate({"serving_default": [dict(zip(names, sample, strict=True)) for sample in samples]}, tool._recipe_manager)
        statistics = observer.get_model_qsvs()
    return bytes(tool.quantize(statistics).quantized_model)


def _outputs(program: Any) -> list[Any]:
    """Return the program's output tensors as torch.export described them, without values."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    return [values[name] for name in program.graph_signature.user_outputs]


def _calibration(request: ConversionRequest, program: Any) -> list[list[np.ndarray]]:
    """Return the calibration samples, each a list of inputs with batch axis, images as NHWC.

    Raises:
        ConfigError: Missing, unreadable, empty, of another shape than the program's inputs, or holding NaN or inf.
    """
    if request.scheme != "int8-static":
        return []
    if not request.calibration:
        raise ConfigError("tflite: int8-static needs calibration data; give some samples of real inputs")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from edgecompress.program import example_inputs

    try:
        tensors = load_file(request.calibration)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{request.calibration}: unreadable calibration data ({error}); run the quantize step again") from error
    columns = []
    for i, wanted in enumerate(example_inputs(program)):
        column = tensors.get(f"input_{i}")
        if column is None or len(column) == 0:
            raise ConfigError(f"{request.calibration}: no samples for input_{i}; run the quantize step again")
        if column.shape[1:] != tuple(wanted.shape[1:]):
            raise ConfigError(f"{request.calibration}: input_{i} has shape {column.shape[1:]}, the model takes {tuple(wanted.shape[1:])}")
        if not np.isfinite(column).all():
            raise ConfigError(f"{request.calibration}: input_{i} holds NaN or inf; leave those samples out")
        column = column.astype(str(wanted.dtype).removeprefix("torch."))
        if column.ndim == IMAGE_AXES:
            column = column.transpose(0, 2, 3, 1)  # (samples, h, w, c)
        columns.append(np.ascontiguousarray(column))
    return [[column[k : k + 1] for column in columns] for k in range(min(map(len, columns)))]


def _describe(content: bytes, program: Any, route: str, notes: list[str]) -> ConversionReply:
    """Read inputs and outputs back from the file itself, in the program's order."""
    from edgecompress.program import example_inputs

    interpreter, signature = _interpreter(content), _signature(content)
    runner = interpreter.get_signature_runner("serving_default")
    specs = []
    for names, details, expected in (
        (signature["inputs"], runner.get_input_details(), [tuple(x.shape) for x in example_inputs(program)]),
        (signature["outputs"], runner.get_output_details(), [tuple(x.shape) for x in _outputs(program)]),
    ):
        found = [_spec(name, details[name]) for name in sorted(names, key=_trailing_number)]
        wanted = [_channels_last(shape) for shape in expected]
        if [spec.shape for spec in found] != wanted:
            raise ToolchainError(
                f"tflite: {route} wrote tensors of shape {[s.shape for s in found]} where {wanted} were due; try the other route"
            )
        specs.append(tuple(found))
    return ConversionReply(inputs=specs[0], outputs=specs[1], toolchain=_versions(route), notes=tuple(notes))


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


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == IMAGE_AXES else shape


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _signature(content: bytes) -> dict[str, list[str]]:
    signatures = _interpreter(content).get_signature_list()
    if "serving_default" not in signatures:
        raise ToolchainError(f"tflite: the file has signatures {list(signatures)}, serving_default is missing; install the tested versions")
    return dict(signatures["serving_default"])


def _trailing_number(name: str) -> int:
    """`args_10` comes after `args_9`."""
    return int(name.rpartition("_")[2])


def _versions(route: str) -> dict[str, str]:
    packages = {
        "litert-torch": ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
        "onnx2tf": ("torch", "onnx", "onnxscript", "onnx2tf", "tensorflow", "ai-edge-litert"),
    }
    found = {}
    for package in packages[route]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


ROUTES: dict[str, Callable[[Any, str, list[list[np.ndarray]]], tuple[bytes, list[str]]]] = {"litert-torch": by_litert_torch}

if __name__ == "__main__":
    sys.exit(serve("to_tflite.py", convert, extra=lambda request: EXTRAS.get(request.route or "litert-torch", "tflite")))
