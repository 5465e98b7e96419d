"""Convert an exported program to TFLite: a program, see README.md beside it.

Route litert-torch (the default) lowers the program itself and quantizes the float file with ai-edge-quantizer. Route onnx2tf goes by ONNX
and TensorFlow. Both give files that take and give images as NHWC, which is what TFLite kernels compute in, and float32 inputs and outputs
in every scheme: the quantize and dequantize steps run inside the XNNPACK delegate and cost microseconds.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from edgecompress.conversion import serve
from edgecompress.errors import ConfigError
from edgecompress.records import ConversionReply, ConversionRequest

SCHEMES: Final = ("fp32", "fp16", "int8-dynamic", "int8-static")
INT8: Final = ("int8-dynamic", "int8-static")
ROUNDING_SAMPLES: Final = 192  # more changed nothing on EfficientNet-Lite0 and take as much longer
DEFAULT: Final = "litert-torch"
# Route: (module beside this file, extra of edgecompress, packages whose versions matter).
ROUTES: Final = {
    "litert-torch": ("tflite_by_litert_torch", "tflite", ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")),
    "onnx2tf": ("tflite_by_onnx2tf", "onnx2tf", ("torch", "onnx", "onnxscript", "onnx2tf", "tensorflow", "ai-edge-litert")),
}


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the TFLite file and what it takes and gives."""
    route = request.route or DEFAULT
    if request.scheme not in SCHEMES:
        raise ConfigError(f"tflite: unknown scheme {request.scheme!r}; choose from {', '.join(SCHEMES)}")
    if route not in ROUTES:
        raise ConfigError(f"tflite: unknown route {route!r}; choose from {', '.join(ROUTES)}")
    from tflite_file import channels_last, describe, name_tensors

    from edgecompress.calibration import read_calibration
    from edgecompress.program import read_program
    from edgecompress.rounding import round_weights

    program = read_program(Path(request.program))
    static = request.scheme == "int8-static"
    seen = read_calibration(request.calibration, program) if static or request.calibration else []
    if seen and request.scheme in INT8:
        program = round_weights(program, seen[:ROUNDING_SAMPLES])
    samples = [[channels_last(x.numpy()) for x in sample] for sample in seen]
    content = name_tensors(import_module(ROUTES[route][0]).convert(program, request.scheme, samples))
    inputs, outputs, notes = describe(content, program, quantized=static)
    return content, ConversionReply(inputs=inputs, outputs=outputs, toolchain=_versions(ROUTES[route][2]), notes=notes)


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
