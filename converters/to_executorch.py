"""Convert an exported program to ExecuTorch (`.pte`) for XNNPACK. A converter program: see README.md in this folder.

int8 files are made by quantization of the exported graph (PT2E) with XNNPACK's quantizer. Inputs and outputs are float32 and NCHW in every
scheme. Name, labels and preprocessing are methods of the file that return constants: `name`, `labels` (a JSON list), `preprocessing` (a
JSON object).
"""

import sys
from typing import Any, Final

from converters.shared.requests import check_no_bytecode, check_schemes, check_single_route, metadata_texts, package_versions
from edgecompress.artifacts.serving import serve_conversion
from edgecompress.errors import ToolchainError
from edgecompress.records import ConversionReply, ConversionRequest

PACKAGES: Final = ("torch", "torchao", "executorch")
REASONS: Final = {"fp16": "XNNPACK would compute in float16, which few ARM cores can; choose fp32 or int8-static"}
TOOLCHAIN: Final = "converters.executorch.quantization"


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the `.pte` file and the description of its inputs, outputs and ops."""
    check_schemes(request, "executorch", REASONS)
    check_single_route(request, "executorch")
    check_no_bytecode(request, "executorch")
    from converters.executorch.lowering import lower_program
    from converters.executorch.quantization import quantize
    from converters.shared.layer_schemes import scheme_of
    from converters.shared.programs import check_real, prepare_program
    from edgecompress.network.exported import example_inputs
    from edgecompress.network.subgraph import enclosing_modules

    prepared = prepare_program(request, "executorch")
    program, scheme, notes = prepared.program, prepared.scheme, ()
    check_real(program, "executorch")
    if scheme.has_integer_weights:
        inputs = example_inputs(program)

        def is_quantized(node: Any) -> bool:
            return scheme_of(enclosing_modules(node), request) == scheme.name

        # With dynamic activations one sample of anything does: the quantizer then reads the ranges of weights alone.
        samples = prepared.samples if scheme.has_static_activations else [inputs]
        program, notes = quantize(program, samples, inputs, dynamic=scheme.dynamic, is_quantized=is_quantized)
    content, ops, undelegated, planned = lower_program(program, metadata_texts(request))
    notes += (f"{planned} bytes of memory planned for tensors outside XNNPACK, inputs and outputs among them",)
    return content, _describe_file(content, prepared.original, notes, {"ops": ops, "undelegated": undelegated})


def _describe_file(content: bytes, program: Any, notes: tuple[str, ...], found: dict[str, Any]) -> ConversionReply:
    """Load the file as a phone does, run it once, and return the reply."""
    from executorch.runtime import Runtime

    from converters.shared.programs import check_output_shapes, input_specs, output_specs
    from edgecompress.errors import first_line
    from edgecompress.network.exported import example_inputs

    try:
        outputs = Runtime.get().load_program(content).load_method("forward").execute(list(example_inputs(program)))
    except Exception as error:  # executorch's errors have no common class
        raise ToolchainError(f"executorch: the runtime refuses the file: {first_line(error)}; choose another format") from error
    check_output_shapes(outputs, program, subject="executorch", remedy="choose another format")
    return ConversionReply(
        inputs=input_specs(program), outputs=output_specs(outputs), toolchain=package_versions(PACKAGES), notes=notes, **found
    )


if __name__ == "__main__":
    sys.exit(serve_conversion("to_executorch.py", convert, extra=lambda _: "executorch", ahead=lambda _: TOOLCHAIN))
