"""Convert an exported program to TorchScript for the lite interpreter (`.ptl`). A converter program: see README.md in this folder.

The program is traced, frozen, optimized for mobile where this torch has XNNPACK, and saved. `torch.jit.optimize_for_inference` is not used,
since its result crashes the writer of the lite interpreter. Inputs and outputs are float32 and NCHW in every scheme. The description of
inputs and outputs, preprocessing and labels lie in the extra file `edgecompress.json`, since TorchScript itself keeps no shapes.

torch.jit and torch.ao.quantization are deprecated, and PyTorch Mobile loads nothing else; their deprecation warnings are ignored.
"""

import io
import sys
import warnings
from typing import Any, Final

import msgspec

from converters.shared.requests import check_schemes, check_single_route
from edgecompress.artifacts.serving import serve_conversion
from edgecompress.errors import ConfigError, ToolchainError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

REASONS: Final = {"fp16": "the mobile CPU kernels compute in float32 or int8; choose fp32 or int8-static"}
BYTECODE_VERSIONS: Final = (4, 5, 6, 7, 8)  # torch 2.13 writes version 8, and can write a file again in each of the others

Specs = tuple[TensorSpec, ...]


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the `.ptl` file and the description of its inputs, outputs and ops."""
    check_schemes(request, "torchscript", REASONS)
    check_single_route(request, "torchscript")
    _check_bytecode_version(request)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|converters\.|__main__")
    import torch

    from converters.shared.layer_schemes import scheme_of
    from converters.shared.programs import input_specs, output_specs, prepare_program
    from converters.torchscript.quantization import choose_engine, quantize, to_functional_module
    from converters.torchscript.renewal import renew_names
    from edgecompress.errors import first_line
    from edgecompress.network.exported import example_inputs, example_outputs
    from edgecompress.network.subgraph import enclosing_modules

    renew_names()
    prepared = prepare_program(request, "torchscript")
    program, scheme = prepared.program, prepared.scheme
    toolchain, notes = {"torch": str(torch.__version__)}, []

    def stays_float(node: Any) -> bool:
        return scheme_of(enclosing_modules(node), request) != scheme.name

    module: Any = to_functional_module(program, stays_float)
    inputs, specs = example_inputs(program), (input_specs(program), output_specs(example_outputs(program)))
    if scheme.has_integer_weights:
        toolchain["quantized_engine"] = choose_engine()
        module, found = quantize(module, prepared.samples, inputs, dynamic=scheme.dynamic)
        notes += found
    try:
        with torch.no_grad():
            frozen = torch.jit.freeze(torch.jit.trace(module, inputs, check_trace=False))
            frozen, note = _optimize_for_mobile(frozen)
            content = bytes(frozen._save_to_buffer_for_lite_interpreter(_extra_files=_extra_files(request, specs)))
    except Exception as error:  # torch.jit raises RuntimeError and classes of C++ extensions
        raise ToolchainError(f"torchscript: torch.jit failed: {first_line(error)}; take format tflite") from error
    content, backported = _backport(content, request.bytecode_version)
    _run_once(content, program)
    return content, _make_reply(content, specs, toolchain, (*notes, *note, *backported))


def _check_bytecode_version(request: ConversionRequest) -> None:
    if request.bytecode_version not in (None, *BYTECODE_VERSIONS):
        known = ", ".join(map(str, BYTECODE_VERSIONS))
        raise ConfigError(f"torchscript: bytecode version {request.bytecode_version} cannot be written; choose from {known}")


def _optimize_for_mobile(module: Any) -> tuple[Any, list[str]]:
    """Return the module with XNNPACK's prepacked kernels, or as it is with a note where this torch was built without XNNPACK."""
    import torch
    import torch.backends.xnnpack
    from torch.utils.mobile_optimizer import optimize_for_mobile

    if not torch.backends.xnnpack.enabled:
        return module, [f"optimize_for_mobile left out: torch {torch.__version__} was built without XNNPACK"]
    return optimize_for_mobile(module), []


def _extra_files(request: ConversionRequest, specs: tuple[Specs, Specs]) -> dict[str, str]:
    from converters.torchscript.file import EXTRA_FILE, FileDescription

    made = FileDescription(name=request.name, inputs=specs[0], outputs=specs[1], preprocessing=request.preprocessing, labels=request.labels)
    return {EXTRA_FILE: msgspec.json.encode(made).decode()}


def _backport(content: bytes, version: int | None) -> tuple[bytes, tuple[str, ...]]:
    """Return the file in another bytecode version, with a note that its bytes are not the same each time."""
    from torch.jit.mobile import _backport_for_mobile_to_buffer, _get_model_bytecode_version

    from edgecompress.errors import first_line

    if version in (None, _get_model_bytecode_version(io.BytesIO(content))):
        return content, ()
    try:
        made = bytes(_backport_for_mobile_to_buffer(io.BytesIO(content), version))
    except RuntimeError as error:
        raise ToolchainError(f"torchscript: bytecode version {version} failed: {first_line(error)}; leave the version out") from error
    return made, (f"not the same bytes each time: torch names the constants of bytecode version {version} by their addresses",)


def _run_once(content: bytes, program: Any) -> None:
    """Load the file as a phone does and run it once.

    Raises:
        ToolchainError: The lite interpreter refuses the file, or its outputs have other shapes than the program's.
    """
    import torch
    from torch.jit.mobile import _load_for_lite_interpreter

    from converters.shared.programs import check_output_shapes
    from edgecompress.errors import first_line
    from edgecompress.network.exported import example_inputs

    try:
        with torch.no_grad():
            outputs = _load_for_lite_interpreter(io.BytesIO(content))(*example_inputs(program))
    except RuntimeError as error:
        raise ToolchainError(f"torchscript: the lite interpreter cannot run the file: {first_line(error)}; take format tflite") from error
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    check_output_shapes(outputs, program, subject="torchscript", remedy="take format tflite")


def _make_reply(content: bytes, specs: tuple[Specs, Specs], toolchain: dict[str, str], notes: tuple[str, ...]) -> ConversionReply:
    from converters.torchscript.file import read_bytecode

    bytecode = read_bytecode(content)
    return ConversionReply(
        inputs=specs[0], outputs=specs[1], toolchain=toolchain, notes=notes, ops=bytecode.ops, bytecode_version=bytecode.version
    )


if __name__ == "__main__":
    sys.exit(serve_conversion("to_torchscript.py", convert, extra=lambda _: "", ahead=lambda _: "converters.torchscript.quantization"))
