"""Convert an exported program to ExecuTorch (`.pte`) for XNNPACK: a program, see README.md beside it.

int8 is quantization of the exported graph (PT2E) with XNNPACK's quantizer. Inputs and outputs are float32 and NCHW in every scheme. Name,
labels and preprocessing are methods of the file that give constants: `name`, `labels` (a JSON list), `preprocessing` (a JSON object).
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from edgecompress.artifacts.converter_process import serve_conversion
from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

SCHEMES: Final = ("fp32", "int8-dynamic", "int8-static")
IMAGE_AXES: Final = 4
ROUNDING_SAMPLES: Final = 192  # as for TFLite: more changed nothing on EfficientNet-Lite0


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the `.pte` file and what it takes and gives."""
    _check(request)
    from converters.executorch.lowering import lower
    from converters.executorch.quantization import quantize
    from converters.shared import attention_masks, layer_schemes
    from edgecompress.network.exported import example_inputs, read_program
    from edgecompress.network.subgraph import enclosing_modules
    from edgecompress.quantization.calibration import read_calibration
    from edgecompress.quantization.gptq import round_weights

    program = read_program(Path(request.program))
    scheme = layer_schemes.quantized_scheme(request, program, subject="executorch")
    inputs, notes, lowered = example_inputs(program), (), program
    if scheme != "fp32":
        seen = read_calibration(request.calibration, program) if scheme == "int8-static" or request.calibration else []

        def wanted(node: Any) -> bool:
            return layer_schemes.scheme_of(enclosing_modules(node), request) == scheme

        if scheme == "int8-static":
            lowered = attention_masks.with_finite_masks(program, seen[:ROUNDING_SAMPLES])
        if seen:
            lowered = round_weights(lowered, seen[:ROUNDING_SAMPLES], bits_of=lambda node: 8 if wanted(node) else None)
        # For int8-dynamic one sample of anything: the weights' ranges are taken when the graph runs.
        lowered, notes = quantize(lowered, scheme, seen if scheme == "int8-static" else [inputs], inputs, wanted)
    content, ops, undelegated, planned = lower(lowered, _metadata(request))
    notes += (f"{planned} bytes of memory planned for tensors outside XNNPACK, inputs and outputs among them",)
    return content, _describe(content, program, notes, {"ops": ops, "undelegated": undelegated})


def _check(request: ConversionRequest) -> None:
    for scheme in (request.scheme, *request.layers.values()):
        if scheme == "fp16":
            raise UnsupportedError(
                "executorch: fp16: XNNPACK would compute in float16, which few ARM cores can; choose fp32 or int8-static"
            )
        if scheme not in SCHEMES:
            raise ConfigError(f"executorch: unknown scheme {scheme!r}; choose from {', '.join(SCHEMES)}")
    if request.route:
        raise ConfigError(f"executorch: unknown route {request.route!r}; there is only one, leave it out")
    if request.io != "float32":
        raise UnsupportedError(
            f"executorch: {request.io} inputs and outputs: a file does not tell their scale; take float32 or format tflite"
        )
    if request.bytecode_version:
        raise UnsupportedError("executorch: bytecode version: only a TorchScript file has one; leave it out")


def _metadata(request: ConversionRequest) -> dict[str, str]:
    given = {"name": request.name}
    if request.labels:
        given["labels"] = msgspec.json.encode(request.labels).decode()
    if request.preprocessing:
        given["preprocessing"] = msgspec.json.encode(request.preprocessing).decode()
    return {key: value for key, value in given.items() if value}


def _describe(content: bytes, program: Any, notes: tuple[str, ...], found: dict[str, Any]) -> ConversionReply:
    """Load the file as a phone does, run it once, and say what it took and gave."""
    from executorch.runtime import Runtime

    from edgecompress.network.exported import example_inputs, example_outputs, first_line

    inputs = example_inputs(program)
    try:
        outputs = Runtime.get().load_program(content).load_method("forward").execute(list(inputs))
    except Exception as error:  # its errors have no common class
        raise ToolchainError(f"executorch: the runtime refuses the file: {first_line(error)}; choose another format") from error
    shapes, due = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in example_outputs(program)]
    if shapes != due:
        raise ToolchainError(f"executorch: the file gives shapes {shapes}, {due} were due; choose another format")
    names = program.graph_signature.user_inputs
    return ConversionReply(
        inputs=tuple(_spec(str(name), x) for name, x in zip(names, inputs, strict=True)),
        outputs=tuple(_spec(f"output_{i}", y) for i, y in enumerate(outputs)),
        toolchain={package: version(package) for package in ("torch", "torchao", "executorch")},
        notes=notes,
        **found,
    )


def _spec(name: str, x: Any) -> TensorSpec:
    layout = "NCHW" if x.ndim == IMAGE_AXES else ""
    return TensorSpec(name=name, shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."), layout=layout)


if __name__ == "__main__":
    sys.exit(
        serve_conversion("to_executorch.py", convert, extra=lambda _: "executorch", ahead=lambda _: "converters.executorch.quantization")
    )
