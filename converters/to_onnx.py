"""Convert an exported program to ONNX for onnxruntime: a program, see README.md beside it.

torch.onnx writes the float model and onnxslim simplifies it. Weights of fp16 files are cast to float32 when they are loaded. int8-static
quantizes in QDQ form from calibration data, which every execution provider reads; int8-dynamic quantizes activations as they come. Inputs
and outputs are float32 and NCHW in every scheme. Labels and preprocessing stand in the file's metadata.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from edgecompress.artifacts.converter_process import serve_conversion
from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

SCHEMES: Final = ("fp32", "fp16", "int8-dynamic", "int8-static")
IMAGE_AXES: Final = 4
ROUNDING_SAMPLES: Final = 192  # as for TFLite: more changed nothing on EfficientNet-Lite0
PACKAGES: Final = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the ONNX file and what it takes and gives."""
    _check(request)
    import onnx

    from converters.onnx.export import export, name_nodes
    from converters.onnx.quantization import quantized, simplified, with_half_weights
    from converters.shared import attention_masks, layer_schemes
    from edgecompress.network.exported import example_inputs, read_program
    from edgecompress.network.subgraph import enclosing_modules
    from edgecompress.quantization.calibration import read_calibration
    from edgecompress.quantization.gptq import round_weights

    program = read_program(Path(request.program))
    scheme = layer_schemes.quantized_scheme(request, program, subject="onnx")
    seen = read_calibration(request.calibration, program) if scheme == "int8-static" or request.calibration else []

    def wanted(inside: Sequence[str]) -> bool:
        return layer_schemes.scheme_of(inside, request) == scheme

    if scheme == "int8-static":
        program = attention_masks.with_finite_masks(program, seen[:ROUNDING_SAMPLES])
    if seen and scheme.startswith("int8"):
        rounded = seen[:ROUNDING_SAMPLES]
        program = round_weights(program, rounded, bits_of=lambda node: 8 if wanted(enclosing_modules(node)) else None)
    model = export(program, subject="onnx", instead="choose another format")
    inside = name_nodes(model)
    feeds = [{f"input_{i}": x.numpy() for i, x in enumerate(sample)} for sample in seen or [example_inputs(program)]]
    model, notes = simplified(model, feeds[:4])
    kept = [node.name for node in model.graph.node if not wanted(inside.get(node.name, ()))]
    if scheme == "fp16":
        model = with_half_weights(model, kept)
    elif scheme != "fp32":
        model, found = quantized(model, scheme, feeds, kept)
        notes += found
    _write_metadata(model, request)
    content = _checked(model)
    return content, _describe(onnx.load_from_string(content), program, notes)


def _check(request: ConversionRequest) -> None:
    for scheme in (request.scheme, *request.layers.values()):
        if scheme not in SCHEMES:
            raise ConfigError(f"onnx: unknown scheme {scheme!r}; choose from {', '.join(SCHEMES)}")
    if request.route:
        raise ConfigError(f"onnx: unknown route {request.route!r}; there is only one, leave it out")
    if request.io != "float32":
        raise UnsupportedError(f"onnx: {request.io} inputs and outputs: a file has no place for their scale; take float32 or format tflite")
    if request.bytecode_version:
        raise UnsupportedError("onnx: bytecode version: only a TorchScript file has one; leave it out")


def _write_metadata(model: Any, request: ConversionRequest) -> None:
    given = {"name": request.name, "layout": "NCHW"}
    if request.labels:
        given["labels"] = msgspec.json.encode(request.labels).decode()
    if request.preprocessing:
        given["preprocessing"] = msgspec.json.encode(request.preprocessing).decode()
    for key, value in given.items():
        if value:
            model.metadata_props.add(key=key, value=value)


def _checked(model: Any) -> bytes:
    import onnx

    from edgecompress.network.exported import first_line

    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's and the inference's own classes, of C++
        raise ToolchainError(f"onnx: the file made is not valid: {first_line(error)}; choose another scheme or format") from error
    return bytes(model.SerializeToString(deterministic=True))


def _describe(model: Any, program: Any, notes: tuple[str, ...]) -> ConversionReply:
    from edgecompress.network.exported import example_inputs, example_outputs

    inputs, outputs = ([_spec(value) for value in values] for values in (model.graph.input, model.graph.output))
    for found, wanted in ((inputs, example_inputs(program)), (outputs, example_outputs(program))):
        shapes, due = [spec.shape for spec in found], [tuple(x.shape) for x in wanted]
        if shapes != due:
            raise ToolchainError(f"onnx: the file has tensors of shape {shapes}, {due} were due; choose another format")
    return ConversionReply(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        toolchain={package: version(package) for package in PACKAGES},
        notes=notes,
        ops=dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    )


def _spec(value: Any) -> TensorSpec:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value for size in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, shape=shape, dtype=dtype, layout="NCHW" if len(shape) == IMAGE_AXES else "")


if __name__ == "__main__":
    sys.exit(serve_conversion("to_onnx.py", convert, extra=lambda _: "onnx", ahead=lambda _: "converters.onnx.quantization"))
