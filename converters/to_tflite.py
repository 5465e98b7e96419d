"""Convert an exported program to TFLite: a program, see README.md beside it.

Route litert-torch (the default) lowers the program itself and quantizes the float file with ai-edge-quantizer. Route onnx2tf goes by ONNX
and TensorFlow. Files take and give images as NHWC, which is what TFLite kernels compute in, unless NCHW is asked for, and float32 in every
scheme unless int8 is asked for: the quantize and dequantize steps run inside the XNNPACK delegate and cost microseconds.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from edgecompress.artifacts.converter_process import serve_conversion
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest

SCHEMES: Final = ("fp32", "fp16", "int8-dynamic", "int8-static", "int16x8", "int4-weights")
INTEGER_ACTIVATIONS: Final = ("int8-static", "int16x8")
ROUNDING_SAMPLES: Final = 192  # more changed nothing on EfficientNet-Lite0 and take as much longer
DEFAULT: Final = "litert-torch"
# Route: (module, extra of edgecompress, packages whose versions matter).
ROUTES: Final = {
    "litert-torch": ("converters.tflite.litert_torch_route", "tflite", ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")),
    "onnx2tf": ("converters.tflite.onnx2tf_route", "onnx2tf", ("torch", "onnx", "onnxscript", "onnx2tf", "tensorflow", "ai-edge-litert")),
}


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the TFLite file and what it takes and gives."""
    route = request.route or DEFAULT
    _check(request, route)
    from converters.shared.layer_schemes import check_layers
    from converters.tflite.delegation import Plan, notes, undelegated
    from converters.tflite.edits import edit, name_tensors, scale_zeros
    from converters.tflite.file import count_ops, describe, to_layout
    from converters.tflite.metadata import add_metadata
    from converters.tflite.program import prepare
    from edgecompress.network.exported import read_program
    from edgecompress.quantization.calibration import read_calibration

    program = read_program(Path(request.program))
    check_layers(request, program, subject="tflite")
    needed = {request.scheme, *request.layers.values()} & set(INTEGER_ACTIVATIONS)
    seen = read_calibration(request.calibration, program) if needed or request.calibration else []
    program = _rounded(prepare(program, seen[:ROUNDING_SAMPLES] if needed else ()), request, seen)
    samples = [[to_layout(x.numpy(), request.layout) for x in sample] for sample in seen]
    content = edit(import_module(ROUTES[route][0]).convert(program, request, samples), scale_zeros, name_tensors)
    inputs, outputs = describe(content, program, request.layout)
    plan = Plan(content)
    reply = ConversionReply(
        inputs=inputs,
        outputs=outputs,
        toolchain=_versions(ROUTES[route][2]),
        notes=tuple(notes(plan, request.scheme)),
        ops=count_ops(content),
        undelegated=undelegated(plan),
    )
    return add_metadata(content, request, inputs, outputs), reply


def _check(request: ConversionRequest, route: str) -> None:
    """Refuse what the route does not do, before its toolchain is loaded."""
    for scheme in (request.scheme, *request.layers.values()):
        if scheme not in SCHEMES:
            raise ConfigError(f"tflite: unknown scheme {scheme!r}; choose from {', '.join(SCHEMES)}")
    if route not in ROUTES:
        raise ConfigError(f"tflite: unknown route {route!r}; choose from {', '.join(ROUTES)}")
    if route == "onnx2tf" and request.layers:
        raise UnsupportedError("tflite: onnx2tf gives the whole file one scheme; take route litert-torch for schemes of single layers")
    if route == "onnx2tf" and request.scheme == "int4-weights":
        raise UnsupportedError("tflite: TensorFlow's converter has no 4-bit weights; take route litert-torch")
    if request.io == "int8" and request.scheme != "int8-static":
        raise UnsupportedError(f"tflite: {request.scheme} takes and gives float32; int8 inputs and outputs are for int8-static")


def _rounded(program: Any, request: ConversionRequest, seen: list[Any]) -> Any:
    """Return the program with its weights on the grid of each layer's scheme, where there are samples to round them by."""
    from converters.shared.layer_schemes import scheme_of
    from edgecompress.network.subgraph import enclosing_modules
    from edgecompress.quantization.fake_quantize import gptq_bits
    from edgecompress.quantization.gptq import round_weights
    from edgecompress.targets import SCHEMES as KNOWN_SCHEMES

    if not seen or not any(KNOWN_SCHEMES[scheme].has_integer_weights for scheme in (request.scheme, *request.layers.values())):
        return program
    samples = seen[:ROUNDING_SAMPLES]
    return round_weights(program, samples, bits_of=lambda node: gptq_bits(node, scheme_of(enclosing_modules(node), request), "tflite"))


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


if __name__ == "__main__":
    sys.exit(
        serve_conversion(
            "to_tflite.py",
            convert,
            extra=lambda request: ROUTES.get(request.route, ROUTES[DEFAULT])[1],
            ahead=lambda route: ROUTES[route or DEFAULT][0],
        )
    )
