"""Write TFLite files of single layers, dense and factorized, for measuring what they cost: a program, see README.md beside it.

Forms that are chains of convolutions or Linears are written directly, op by op as litert-torch lowers them, which takes milliseconds where
litert-torch takes a second; a planner asks for hundreds. Other forms go through litert-torch. All have the ReLU that mostly follows a layer
and that kernels compute for nothing, and values drawn at random: only shapes matter to time.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

from edgecompress.artifacts.converter_process import answer_request
from edgecompress.errors import EdgeCompressError, UnsupportedError
from edgecompress.records import ConversionRequest, LayerFile, LayerForm, LayersReply, LayersRequest

PACKAGES: Final = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
SEED: Final = 0


def write(request: LayersRequest) -> LayersReply:
    """Write every file that is asked for; those a scheme cannot have are left out and named in the reply."""
    refused = {}
    lowered: tuple[LayerForm, bytes] | None = None
    for file in request.files:
        try:
            if lowered is None or lowered[0] != file.layer:  # one form's schemes come after each other
                lowered = file.layer, _lower(file.layer)
            Path(file.output).write_bytes(_quantized(lowered[1], file))
        except EdgeCompressError as error:
            refused[file.output] = str(error)
    return LayersReply(toolchain={package: version(package) for package in PACKAGES}, refused=refused)


def _module(form: LayerForm) -> Any:
    """Return the layers of a form, with values, and a ReLU behind them."""
    import torch
    from torch import nn

    from edgecompress.factorizations import factorize

    torch.manual_seed(SEED)
    layer = getattr(nn, form.kind)(**form.arguments)
    if form.method == "dense":
        return nn.Sequential(layer, nn.ReLU()).eval()
    compact = factorize(layer, form.method, form.rank, options=form.options, fit=False)
    for p in compact.parameters():
        nn.init.normal_(p, std=0.1)
    return (
        nn.Sequential(*compact, nn.ReLU()).eval()
        if type(compact).forward is nn.Sequential.forward
        else nn.Sequential(compact, nn.ReLU()).eval()
    )


def _lower(form: LayerForm) -> bytes:
    """Return the float file; images are NHWC."""
    import torch

    from converters.tflite.chain import lower

    module = _module(form)
    content = lower(list(module)[:-1], form.input_shape)
    if content is not None:
        return content
    from converters.tflite.litert_torch_route import lower_program
    from edgecompress.network.exported import to_program

    return cast(bytes, lower_program(to_program(module, (torch.zeros(1, *form.input_shape),)), "NHWC"))


def _quantized(content: bytes, file: LayerFile) -> bytes:
    if file.scheme == "fp32":
        return content
    import numpy as np

    from converters.tflite.file import to_layout
    from converters.tflite.recipe import quantize

    shape = (1, *file.layer.input_shape)
    sample = to_layout(np.random.default_rng(SEED).normal(size=shape).astype(np.float32), "NHWC")
    # Integers in and out, as inside a network.
    io = "int8" if file.scheme == "int8-static" else "float32"
    if file.scheme not in ("int8-dynamic", "int8-static", "fp16", "int16x8", "int4-weights"):
        raise UnsupportedError(f"cost tables know no scheme {file.scheme}")
    return quantize(content, None, ConversionRequest(program="", output="", scheme=file.scheme, io=io), [[sample]])


if __name__ == "__main__":
    sys.exit(answer_request("layer_files.py", write, LayersRequest, extra=lambda _: "tflite"))
