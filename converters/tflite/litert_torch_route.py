"""Convert by route litert-torch: lower the program with litert-torch, quantize the float file with ai-edge-quantizer."""

import re
from typing import Any

import litert_torch
import numpy as np
import torch

from converters.shared import layer_schemes
from converters.tflite.edits import edit_file, name_tensors, unshare_weights
from converters.tflite.file import IMAGE_AXES
from converters.tflite.recipe import quantize_file
from edgecompress.errors import ToolchainError, UnsupportedError, first_line
from edgecompress.faults.remedies import find_toolchain_remedy
from edgecompress.network.exported import example_inputs, example_outputs
from edgecompress.records import ConversionRequest
from edgecompress.targets import FLOAT32

MISSING_OP = re.compile(r"(?i)(?:lowering not found|no lowering|not supported|not implemented|unsupported)[^\n]*?((?:aten|prims)[.:]+\w+)")


def convert(program: Any, request: ConversionRequest, samples: list[list[np.ndarray]]) -> bytes:
    """Return a TFLite file whose 4-D inputs and outputs have the layout asked for.

    Args:
        samples: The inputs of each calibration sample in that layout, for schemes that need them.
    """
    content = edit_file(lower_program(program, request.layout), unshare_weights, name_tensors)
    if request.scheme == FLOAT32 and not request.layers:
        return content
    return quantize_file(content, program, request, samples)


def lower_program(program: Any, layout: str) -> bytes:
    """Return the float file.

    Raises:
        UnsupportedError: An op that litert-torch lacks.
        ToolchainError: litert-torch gave up.
    """
    inputs = example_inputs(program)
    module = program.module(check_guards=False)
    if layout == "NHWC":
        images = [i for i, x in enumerate(inputs) if x.ndim == IMAGE_AXES]
        maps = [i for i, y in enumerate(example_outputs(program)) if y.ndim == IMAGE_AXES]
        module = litert_torch.to_channel_last_io(module, args=images, outputs=maps)
        inputs = tuple(x.permute(0, 2, 3, 1).contiguous() if i in images else x for i, x in enumerate(inputs))
    try:
        with torch.no_grad():
            return bytes(litert_torch.convert(module, inputs).model_content())
    except Exception as error:  # MLIR, lowering and torch errors of many classes
        if found := MISSING_OP.search(str(error)):
            op = re.sub(r"[.:]+", ".", found[1])
            layer = layer_schemes.name_layer(program.graph.nodes, op)
            raise UnsupportedError(f"tflite: {layer}litert-torch has no {op}; replace that op or take route onnx2tf") from error
        remedy = find_toolchain_remedy(error) or "take route onnx2tf"
        raise ToolchainError(f"tflite: litert-torch failed: {first_line(error)}; {remedy}") from error
