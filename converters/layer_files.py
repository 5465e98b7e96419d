"""Write TFLite files of single layers, dense and factorized, whose latency is measured. A program that keeps the contract in README.md.

Chains of convolutions or Linears are written directly, op by op as litert-torch lowers them. That takes milliseconds where litert-torch
takes a second, and a planner requests hundreds of files. Other forms go through litert-torch. Every file ends in a ReLU, as most layers do,
which kernels compute at no cost. Values are random, since only shapes affect the time.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

from edgecompress.artifacts.serving import answer_requests
from edgecompress.errors import EdgeCompressError, UnsupportedError
from edgecompress.records import ConversionRequest, LayerFile, LayerForm, LayersReply, LayersRequest
from edgecompress.targets import FLOAT32, FORMATS, SCHEMES

PACKAGES: Final = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
SEED: Final = 0


def write_files(request: LayersRequest) -> LayersReply:
    """Write every requested file; files that a scheme cannot have are left out and named in the reply."""
    refused = {}
    lowered: tuple[LayerForm, bytes] | None = None
    for file in request.files:
        try:
            if lowered is None or lowered[0] != file.layer:  # one form's schemes come after each other
                lowered = file.layer, _lower(file.layer)
            Path(file.output).write_bytes(_quantize(lowered[1], file))
        except EdgeCompressError as error:
            refused[file.output] = str(error)
    return LayersReply(toolchain={package: version(package) for package in PACKAGES}, refused=refused)


def _make_module(form: LayerForm) -> Any:
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

    from converters.tflite.chain import write_chain

    module = _make_module(form)
    content = write_chain(list(module)[:-1], form.input_shape)
    if content is not None:
        return content
    from converters.tflite.litert_torch_route import lower_program
    from edgecompress.network.exported import to_program

    return cast(bytes, lower_program(to_program(module, (torch.zeros(1, *form.input_shape),)), "NHWC"))


def _quantize(content: bytes, file: LayerFile) -> bytes:
    if file.scheme == FLOAT32:
        return content
    import numpy as np

    from converters.tflite.file import to_layout
    from converters.tflite.recipe import quantize_file

    shape = (1, *file.layer.input_shape)
    sample = to_layout(np.random.default_rng(SEED).normal(size=shape).astype(np.float32), "NHWC")
    if file.scheme not in FORMATS["tflite"].schemes:
        raise UnsupportedError(f"cost tables know no scheme {file.scheme}")
    io = "int8" if SCHEMES[file.scheme].can_have_int8_io else "float32"  # as between the layers of a network
    return quantize_file(content, None, ConversionRequest(program="", output="", scheme=file.scheme, io=io), [[sample]])


if __name__ == "__main__":
    sys.exit(answer_requests("layer_files.py", write_files, LayersRequest, extra=lambda _: "tflite"))
