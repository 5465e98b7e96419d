"""Convert an exported program to TorchScript for the lite interpreter (`.ptl`): a program, see README.md beside it.

Trace, freeze, optimize_for_mobile where this torch has XNNPACK, save. Inputs and outputs are float32 and NCHW in every scheme. Never
`torch.jit.optimize_for_inference`: what it makes crashes the lite interpreter's writer.

torch.jit and torch.ao.quantization are deprecated but still what PyTorch Mobile loads; their warnings about that say nothing new.
"""

import io
import sys
import warnings
from pathlib import Path
from typing import Any, Final

from edgecompress.conversion import serve
from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

SCHEMES: Final = ("fp32", "int8-dynamic", "int8-static")
IMAGE_AXES: Final = 4


def convert(request: ConversionRequest) -> tuple[bytes, ConversionReply]:
    """Return the `.ptl` file and what it takes and gives."""
    if request.scheme == "fp16":
        raise UnsupportedError("torchscript: fp16: the mobile CPU kernels compute in float32 or int8; choose fp32 or int8-static")
    if request.scheme not in SCHEMES:
        raise ConfigError(f"torchscript: unknown scheme {request.scheme!r}; choose from {', '.join(SCHEMES)}")
    if request.route:
        raise ConfigError(f"torchscript: unknown route {request.route!r}; there is only one, leave it out")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|torch_quantization|to_torchscript|__main__")
    import torch
    import torch_quantization

    from edgecompress.calibration import read_calibration
    from edgecompress.program import example_inputs, first_line, read_program

    program = read_program(Path(request.program))
    toolchain, notes = {"torch": str(torch.__version__)}, []
    module: Any = torch_quantization.functional_module(program)
    if request.scheme != "fp32":
        toolchain["quantized_engine"] = torch_quantization.choose_engine()
        samples = read_calibration(request.calibration, program) if request.scheme == "int8-static" else []
        module, found = torch_quantization.quantize(module, request.scheme, samples, example_inputs(program))
        notes += found
    inputs = example_inputs(program)
    try:
        with torch.no_grad():
            frozen = torch.jit.freeze(torch.jit.trace(module, inputs, check_trace=False))
            frozen, note = _for_mobile(frozen)
            content = bytes(frozen._save_to_buffer_for_lite_interpreter())
    except Exception as error:  # torch.jit raises RuntimeError and classes of C++ extensions
        raise ToolchainError(f"torchscript: torch.jit failed: {first_line(error)}; take format tflite") from error
    return content, _describe(content, program, toolchain, [*notes, *note])


def _for_mobile(module: Any) -> tuple[Any, list[str]]:
    """Return the module with XNNPACK's prepacked kernels, or as it is with a note where this torch was built without XNNPACK."""
    import torch
    import torch.backends.xnnpack
    from torch.utils.mobile_optimizer import optimize_for_mobile

    if not torch.backends.xnnpack.enabled:
        return module, [f"optimize_for_mobile left out: torch {torch.__version__} was built without XNNPACK"]
    return optimize_for_mobile(module), []


def _describe(content: bytes, program: Any, toolchain: dict[str, str], notes: list[str]) -> ConversionReply:
    """Load the file as a phone does, run it once, and say what it took and gave."""
    import torch
    from torch.jit.mobile import _load_for_lite_interpreter

    from edgecompress.program import example_inputs, example_outputs

    inputs = example_inputs(program)
    with torch.no_grad():
        outputs = _load_for_lite_interpreter(io.BytesIO(content))(*inputs)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    shapes, wanted = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in example_outputs(program)]
    if shapes != wanted:
        raise ToolchainError(f"torchscript: the file gives shapes {shapes}, {wanted} were due; take format tflite")
    names = program.graph_signature.user_inputs
    return ConversionReply(
        inputs=tuple(_spec(str(name), x) for name, x in zip(names, inputs, strict=True)),
        outputs=tuple(_spec(f"output_{i}", y) for i, y in enumerate(outputs)),
        toolchain=toolchain,
        notes=tuple(notes),
    )


def _spec(name: str, x: Any) -> TensorSpec:
    layout = "NCHW" if x.ndim == IMAGE_AXES else ""
    return TensorSpec(name=name, shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."), layout=layout)


if __name__ == "__main__":
    sys.exit(serve("to_torchscript.py", convert, extra=lambda _: ""))
