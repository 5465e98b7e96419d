"""Convert an exported program to TorchScript for the lite interpreter (`.ptl`): a program, see README.md beside it.

Trace, freeze, optimize_for_mobile where this torch has XNNPACK, save. Inputs and outputs are float32 and NCHW in every scheme. Never
`torch.jit.optimize_for_inference`: what it makes crashes the lite interpreter's writer. What the file takes and gives, preprocessing and
labels lie in it as the extra file `edgecompress.json`, since TorchScript itself keeps no shapes.

torch.jit and torch.ao.quantization are deprecated but still what PyTorch Mobile loads; their warnings about that say nothing new.
"""

import io
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import msgspec

from edgecompress.artifacts.converter_process import serve_conversion
from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

SCHEMES: Final = ("fp32", "int8-dynamic", "int8-static")
BYTECODE_VERSIONS: Final = (4, 5, 6, 7, 8)  # torch 2.13 writes 8 and can write a file again as any of the others
IMAGE_AXES: Final = 4
ROUNDING_SAMPLES: Final = 192  # as for TFLite: more changed nothing on EfficientNet-Lite0


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the `.ptl` file and what it takes and gives."""
    _check(request)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|converters\.|__main__")
    import torch

    from converters.shared import attention_masks, layer_schemes
    from converters.torchscript.quantization import choose_engine, functional_module, quantize
    from edgecompress.errors import first_line
    from edgecompress.network.exported import example_inputs, read_program
    from edgecompress.network.subgraph import enclosing_modules
    from edgecompress.quantization.calibration import read_calibration
    from edgecompress.quantization.fake_quantize import gptq_bits
    from edgecompress.quantization.gptq import round_weights

    program = read_program(Path(request.program))
    scheme = layer_schemes.quantized_scheme(request, program, subject="torchscript")
    seen = read_calibration(request.calibration, program) if scheme == "int8-static" or request.calibration else []
    toolchain, notes = {"torch": str(torch.__version__)}, []

    def kept(node: Any) -> bool:
        return layer_schemes.scheme_of(enclosing_modules(node), request) != scheme

    def bits_of(node: Any) -> int | None:
        return gptq_bits(node, layer_schemes.scheme_of(enclosing_modules(node), request), "torchscript")

    if scheme == "int8-static":
        program = attention_masks.with_finite_masks(program, seen[:ROUNDING_SAMPLES])
    if seen and scheme != "fp32":
        program = round_weights(program, seen[:ROUNDING_SAMPLES], bits_of=bits_of)
    module: Any = functional_module(program, kept)
    inputs = example_inputs(program)
    if scheme != "fp32":
        toolchain["quantized_engine"] = choose_engine()
        module, found = quantize(module, scheme, seen, inputs)
        notes += found
    try:
        with torch.no_grad():
            frozen = torch.jit.freeze(torch.jit.trace(module, inputs, check_trace=False))
            frozen, note = _for_mobile(frozen)
            specs = _specs(program)
            content = bytes(frozen._save_to_buffer_for_lite_interpreter(_extra_files=_extra_files(request, specs)))
    except Exception as error:  # torch.jit raises RuntimeError and classes of C++ extensions
        raise ToolchainError(f"torchscript: torch.jit failed: {first_line(error)}; take format tflite") from error
    content, backported = _backport(content, request.bytecode_version)
    _prove(content, program)
    return content, _reply(content, specs, toolchain, (*notes, *note, *backported))


def _check(request: ConversionRequest) -> None:
    for scheme in (request.scheme, *request.layers.values()):
        if scheme == "fp16":
            raise UnsupportedError("torchscript: fp16: the mobile CPU kernels compute in float32 or int8; choose fp32 or int8-static")
        if scheme not in SCHEMES:
            raise ConfigError(f"torchscript: unknown scheme {scheme!r}; choose from {', '.join(SCHEMES)}")
    if request.route:
        raise ConfigError(f"torchscript: unknown route {request.route!r}; there is only one, leave it out")
    if request.io != "float32":
        raise UnsupportedError(f"torchscript: {request.io} inputs and outputs: a file quantizes inside; take float32 or format tflite")
    if request.bytecode_version not in (None, *BYTECODE_VERSIONS):
        known = ", ".join(map(str, BYTECODE_VERSIONS))
        raise ConfigError(f"torchscript: bytecode version {request.bytecode_version} cannot be written; choose from {known}")


def _for_mobile(module: Any) -> tuple[Any, list[str]]:
    """Return the module with XNNPACK's prepacked kernels, or as it is with a note where this torch was built without XNNPACK."""
    import torch
    import torch.backends.xnnpack
    from torch.utils.mobile_optimizer import optimize_for_mobile

    if not torch.backends.xnnpack.enabled:
        return module, [f"optimize_for_mobile left out: torch {torch.__version__} was built without XNNPACK"]
    return optimize_for_mobile(module), []


def _specs(program: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    from edgecompress.network.exported import example_inputs, example_outputs

    names = (str(name) for name in program.graph_signature.user_inputs)
    inputs = tuple(_spec(name, x) for name, x in zip(names, example_inputs(program), strict=True))
    return inputs, tuple(_spec(f"output_{i}", y) for i, y in enumerate(example_outputs(program)))


def _spec(name: str, x: Any) -> TensorSpec:
    layout = "NCHW" if x.ndim == IMAGE_AXES else ""
    return TensorSpec(name=name, shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."), layout=layout)


def _extra_files(request: ConversionRequest, specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]) -> dict[str, str]:
    from converters.torchscript.file import EXTRA_FILE, Described

    made = Described(name=request.name, inputs=specs[0], outputs=specs[1], preprocessing=request.preprocessing, labels=request.labels)
    return {EXTRA_FILE: msgspec.json.encode(made).decode()}


def _backport(content: bytes, version: int | None) -> tuple[bytes, tuple[str, ...]]:
    """Return the file in another bytecode version, which numbers its constants by addresses in memory."""
    from torch.jit.mobile import _backport_for_mobile_to_buffer, _get_model_bytecode_version

    from edgecompress.network.exported import first_line

    if version in (None, _get_model_bytecode_version(io.BytesIO(content))):
        return content, ()
    try:
        made = bytes(_backport_for_mobile_to_buffer(io.BytesIO(content), version))
    except RuntimeError as error:
        raise ToolchainError(f"torchscript: bytecode version {version} failed: {first_line(error)}; leave the version out") from error
    return made, (f"not the same bytes each time: torch names the constants of bytecode version {version} by their addresses",)


def _prove(content: bytes, program: Any) -> None:
    """Load the file as a phone does and run it once."""
    import torch
    from torch.jit.mobile import _load_for_lite_interpreter

    from edgecompress.network.exported import example_inputs, example_outputs, first_line

    try:
        with torch.no_grad():
            outputs = _load_for_lite_interpreter(io.BytesIO(content))(*example_inputs(program))
    except RuntimeError as error:
        raise ToolchainError(f"torchscript: the lite interpreter cannot run the file: {first_line(error)}; take format tflite") from error
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    shapes, wanted = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in example_outputs(program)]
    if shapes != wanted:
        raise ToolchainError(f"torchscript: the file gives shapes {shapes}, {wanted} were due; take format tflite")


def _reply(
    content: bytes, specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]], toolchain: dict[str, str], notes: tuple[str, ...]
) -> ConversionReply:
    from converters.torchscript.file import read_bytecode

    bytecode = read_bytecode(content)
    return ConversionReply(
        inputs=specs[0], outputs=specs[1], toolchain=toolchain, notes=notes, ops=bytecode.ops, bytecode_version=bytecode.version
    )


if __name__ == "__main__":
    sys.exit(serve_conversion("to_torchscript.py", convert, extra=lambda _: "", ahead=lambda _: "converters.torchscript.quantization"))
