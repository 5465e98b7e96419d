"""Convert an exported program to TFLite. A converter program: see README.md in this folder.

Route litert-torch, the default, lowers the program itself and quantizes the float file with ai-edge-quantizer. Route onnx2tf goes through
ONNX and TensorFlow. Files have images as NHWC, in which TFLite's kernels compute, unless the request asks for NCHW. They take and return
float32 in every scheme unless the request asks for int8: XNNPACK runs the steps between float32 and int8 in microseconds.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from converters.shared.requests import check_schemes, package_versions
from edgecompress.artifacts.serving import serve_conversion
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest
from edgecompress.targets import FLOAT_TAIL, SCHEMES


class Route(NamedTuple):
    """A toolchain: the module that converts by it, the extra of edgecompress that installs it, and the packages whose versions matter."""

    module: str
    extra: str
    packages: tuple[str, ...]


DEFAULT: Final = "litert-torch"
ROUTES: Final = {
    "litert-torch": Route(
        "converters.tflite.litert_torch_route", "tflite", ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
    ),
    "onnx2tf": Route(
        "converters.tflite.onnx2tf_route", "onnx2tf", ("torch", "onnx", "onnxscript", "onnx2tf", "tensorflow", "ai-edge-litert")
    ),
}


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the TFLite file and the description of its inputs, outputs and ops."""
    name = request.route or DEFAULT
    _check(request, name)
    route = ROUTES[name]
    from converters.tflite.delegation import Delegates, list_undelegated, make_notes
    from converters.tflite.edits import edit_file, fill_zero_scales, name_tensors
    from converters.tflite.file import count_ops, describe_tensors, to_layout
    from converters.tflite.metadata import add_metadata

    program, samples = _prepare(request)
    arrays = [[to_layout(x.numpy(), request.layout) for x in sample] for sample in samples]
    content = edit_file(import_module(route.module).convert(program, request, arrays), fill_zero_scales, name_tensors)
    inputs, outputs = describe_tensors(content, program, request.layout, *arrays[:1])
    delegates = Delegates(content)
    reply = ConversionReply(
        inputs=inputs,
        outputs=outputs,
        toolchain=package_versions(route.packages),
        notes=tuple(make_notes(delegates, request.scheme)),
        ops=count_ops(content),
        undelegated=list_undelegated(delegates),
    )
    return add_metadata(content, request, inputs, outputs), reply


def _check(request: ConversionRequest, route: str) -> None:
    """Refuse a request that the route cannot serve, before its toolchain is loaded."""
    check_schemes(request, "tflite")
    if route not in ROUTES:
        raise ConfigError(f"tflite: unknown route {route!r}; choose from {', '.join(ROUTES)}")
    if FLOAT_TAIL in request.layers and request.io == "int8":
        raise UnsupportedError("tflite: an int8 output has one scale, and its ranges need more than one; take float32 inputs and outputs")
    if route == "onnx2tf" and FLOAT_TAIL in request.layers:
        raise UnsupportedError(
            "tflite: onnx2tf gives the whole file one scheme, and the output needs ops in float to hold its ranges; take route litert-torch"
        )
    if route == "onnx2tf" and request.layers:
        raise UnsupportedError("tflite: onnx2tf gives the whole file one scheme; take route litert-torch for schemes of single layers")
    if route == "onnx2tf" and SCHEMES[request.scheme].weight_bits == 4:
        raise UnsupportedError("tflite: TensorFlow's converter has no 4-bit weights; take route litert-torch")
    if request.io == "int8" and not SCHEMES[request.scheme].can_have_int8_io:
        raise UnsupportedError(f"tflite: {request.scheme} takes and gives float32; int8 inputs and outputs are for int8-static")


def _prepare(request: ConversionRequest) -> tuple[Any, list[Any]]:
    """Return the program, rewritten for TFLite and with its integer weights rounded, and the calibration samples."""
    from converters.shared.layer_schemes import check_layers
    from converters.shared.programs import ROUNDING_SAMPLES, check_real, round_program
    from converters.tflite.program import rewrite_program
    from edgecompress.network.exported import read_program
    from edgecompress.quantization.calibration import read_calibration

    program = read_program(Path(request.program))
    check_layers(request, program, subject="tflite")
    check_real(program, "tflite")
    schemes = [SCHEMES[name] for name in (request.scheme, *request.layers.values())]
    has_integers = any(scheme.has_static_activations for scheme in schemes)
    samples = read_calibration(request.calibration, program) if has_integers or request.calibration else []
    program = rewrite_program(program, samples[:ROUNDING_SAMPLES] if has_integers else ())
    if samples and any(scheme.has_integer_weights for scheme in schemes):
        program = round_program(program, request, samples, "tflite")
    return program, samples


if __name__ == "__main__":
    sys.exit(
        serve_conversion(
            "to_tflite.py",
            convert,
            extra=lambda request: ROUTES.get(request.route, ROUTES[DEFAULT]).extra,
            ahead=lambda route: ROUTES[route or DEFAULT].module,
        )
    )
