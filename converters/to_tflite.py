"""Convert an exported program to TFLite: a program, see README.md beside it.

Route litert-torch (the default) lowers the program itself and quantizes the float file with ai-edge-quantizer. Route onnx2tf goes by ONNX
and TensorFlow. Both give files that take and give images as NHWC, which is what TFLite kernels compute in, and float32 inputs and outputs
in every scheme: the quantize and dequantize steps run inside the XNNPACK delegate and cost microseconds.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgecompress.conversion import serve
from edgecompress.errors import ConfigError, ToolchainError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

SCHEMES: Final = ("fp32", "fp16", "int8-dynamic", "int8-static")
DEFAULT: Final = "litert-torch"
# Route: (module beside this file, extra of edgecompress, packages whose versions matter).
ROUTES: Final = {
    "litert-torch": ("tflite_by_litert_torch", "tflite", ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")),
    "onnx2tf": ("tflite_by_onnx2tf", "onnx2tf", ("torch", "onnx", "onnxscript", "onnx2tf", "tensorflow", "ai-edge-litert")),
}
SIGNATURE: Final = "serving_default"
IMAGE_AXES: Final = 4


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the TFLite file and what it takes and gives."""
    route = request.route or DEFAULT
    if request.scheme not in SCHEMES:
        raise ConfigError(f"tflite: unknown scheme {request.scheme!r}; choose from {', '.join(SCHEMES)}")
    if route not in ROUTES:
        raise ConfigError(f"tflite: unknown route {route!r}; choose from {', '.join(ROUTES)}")
    from edgecompress.calibration import read_calibration
    from edgecompress.program import read_program

    program = read_program(Path(request.program))
    samples = []
    if request.scheme == "int8-static":
        samples = [[_channels_last(x.numpy()) for x in sample] for sample in read_calibration(request.calibration, program)]
    content = import_module(ROUTES[route][0]).convert(program, request.scheme, samples)
    return content, _describe(content, program, route)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == IMAGE_AXES else x


def _describe(content: bytes, program: Any, route: str) -> ConversionReply:
    """Read inputs and outputs back from the file itself, and check them against the program, in its order."""
    from ai_edge_litert.interpreter import Interpreter

    from edgecompress.program import example_inputs, example_outputs

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    signatures = interpreter.get_signature_list()
    if SIGNATURE not in signatures:
        raise ToolchainError(f"tflite: the file has signatures {list(signatures)}, {SIGNATURE} is missing; install the tested versions")
    runner = interpreter.get_signature_runner(SIGNATURE)
    sides = []
    for details, expected in (
        (runner.get_input_details(), example_inputs(program)),
        (runner.get_output_details(), example_outputs(program)),
    ):
        found = tuple(_spec(name, details[name]) for name in sorted(details, key=_trailing_number))
        wanted = [tuple(_channels_last(x.numpy()).shape) for x in expected]
        if [spec.shape for spec in found] != wanted:
            raise ToolchainError(
                f"tflite: {route} wrote tensors of shape {[s.shape for s in found]}, {wanted} were due; take another route"
            )
        sides.append(found)
    return ConversionReply(inputs=sides[0], outputs=sides[1], toolchain=_versions(ROUTES[route][2]))


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


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


if __name__ == "__main__":
    sys.exit(serve("to_tflite.py", convert, extra=lambda request: ROUTES.get(request.route, ROUTES[DEFAULT])[1]))
