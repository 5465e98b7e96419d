"""Convert an exported program to ONNX for onnxruntime. A converter program: see README.md in this folder.

torch.onnx writes the float model and onnxslim simplifies it. Weights of fp16 files are cast to float32 when a runtime loads them.
int8-static files are quantized in QDQ form, which every execution provider reads, from calibration data; int8-dynamic files quantize
activations while they run. Inputs and outputs are float32 and NCHW in every scheme. Labels and preprocessing stand in the file's metadata.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from converters.shared.requests import check_no_bytecode, check_schemes, check_single_route, metadata_texts, package_versions
from edgecompress.artifacts.serving import serve_conversion
from edgecompress.errors import ToolchainError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec
from edgecompress.targets import FLOAT_TAIL

PACKAGES: Final = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")
COMPARED_SAMPLES: Final = 4  # a simplification that changes the outputs changes those of the first samples


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the ONNX file and the description of its inputs, outputs and ops."""
    check_schemes(request, "onnx")
    check_single_route(request, "onnx")
    check_no_bytecode(request, "onnx")
    import onnx

    from converters.onnx.export import export_program, name_nodes
    from converters.onnx.quantization import add_readers, halve_weights, quantize, simplify
    from converters.shared.layer_schemes import scheme_of
    from converters.shared.programs import prepare_program
    from edgecompress.network.exported import example_inputs

    prepared = prepare_program(request, "onnx")
    program, scheme = prepared.program, prepared.scheme

    def is_quantized(inside: Sequence[str]) -> bool:
        return scheme_of(inside, request) == scheme.name

    model = export_program(program, subject="onnx", instead="choose another format")
    inside = name_nodes(model)
    feeds = [{f"input_{i}": x.numpy() for i, x in enumerate(sample)} for sample in prepared.samples or [example_inputs(program)]]
    model, notes = simplify(model, feeds[:COMPARED_SAMPLES])
    kept = [node.name for node in model.graph.node if not is_quantized(inside.get(node.name, ()))]
    if FLOAT_TAIL in request.layers:
        kept = add_readers(model, kept, [name for name in kept if FLOAT_TAIL in inside.get(name, ())])
    if scheme.has_integer_weights:
        model, found = quantize(model, feeds, kept, dynamic=scheme.dynamic)
        notes += found
    elif scheme.weight_bits == 16:
        model = halve_weights(model, kept)
    for key, value in (metadata_texts(request) | {"layout": "NCHW"}).items():
        model.metadata_props.add(key=key, value=value)
    content = _serialize_checked(model)
    return content, _describe_file(onnx.load_from_string(content), program, notes)


def _serialize_checked(model: Any) -> bytes:
    """Return the content of the file, once onnx has checked the model."""
    import onnx

    from edgecompress.errors import first_line

    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's and the inference's own classes, of C++
        raise ToolchainError(f"onnx: the file made is not valid: {first_line(error)}; choose another scheme or format") from error
    return bytes(model.SerializeToString(deterministic=True))


def _describe_file(model: Any, program: Any, notes: tuple[str, ...]) -> ConversionReply:
    from edgecompress.network.exported import example_inputs, example_outputs

    inputs, outputs = ([_spec(value) for value in values] for values in (model.graph.input, model.graph.output))
    for found, wanted in ((inputs, example_inputs(program)), (outputs, example_outputs(program))):
        shapes, due = [spec.shape for spec in found], [tuple(x.shape) for x in wanted]
        if shapes != due:
            raise ToolchainError(f"onnx: the file has tensors of shape {shapes}, {due} were due; choose another format")
    return ConversionReply(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        toolchain=package_versions(PACKAGES),
        notes=notes,
        ops=dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    )


def _spec(value: Any) -> TensorSpec:
    from onnx import helper

    from converters.shared.programs import IMAGE_AXES

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value for size in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, shape=shape, dtype=dtype, layout="NCHW" if len(shape) == IMAGE_AXES else "")


if __name__ == "__main__":
    sys.exit(serve_conversion("to_onnx.py", convert, extra=lambda _: "onnx", ahead=lambda _: "converters.onnx.quantization"))
