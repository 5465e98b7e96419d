"""Route litert-torch of to_tflite.py: lower the program with litert-torch, quantize the float file with ai-edge-quantizer."""

import re
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.utils import qsv_utils

from edgecompress.errors import ToolchainError, UnsupportedError
from edgecompress.program import example_inputs, example_outputs, first_line

IMAGE_AXES = 4
EVERY_OP = qtyping.TFLOperationName.ALL_SUPPORTED
ENDS = (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT)
LACKING = re.compile(r"(?i)(?:lowering not found|no lowering|not supported|not implemented|unsupported)[^\n]*?((?:aten|prims)[.:]+\w+)")


def convert(program: Any, scheme: str, samples: list[list[np.ndarray]]) -> bytes:
    """Return a TFLite file whose 4-D inputs and outputs are NHWC.

    Args:
        samples: For int8-static: the inputs of each calibration sample, NHWC.
    """
    content = _lower(program)
    return content if scheme == "fp32" else _quantize(content, scheme, samples)


def _lower(program: Any) -> bytes:
    inputs = example_inputs(program)
    images = [i for i, x in enumerate(inputs) if x.ndim == IMAGE_AXES]
    maps = [i for i, y in enumerate(example_outputs(program)) if y.ndim == IMAGE_AXES]
    module = litert_torch.to_channel_last_io(program.module(check_guards=False), args=images, outputs=maps)
    arguments = tuple(x.permute(0, 2, 3, 1).contiguous() if i in images else x for i, x in enumerate(inputs))
    try:
        with torch.no_grad():
            return bytes(litert_torch.convert(module, arguments).model_content())
    except Exception as error:  # MLIR, lowering and torch errors of many classes
        if found := LACKING.search(str(error)):
            raise UnsupportedError(f"tflite: litert-torch has no {found[1]}; replace that op or take route onnx2tf") from error
        raise ToolchainError(f"tflite: litert-torch failed: {first_line(error)}; take route onnx2tf") from error


def _quantize(content: bytes, scheme: str, samples: list[list[np.ndarray]]) -> bytes:
    tool = quantizer.Quantizer(content)
    statistics = None
    if scheme == "fp16":
        tool.add_weight_only_config(".*", EVERY_OP, 16, qtyping.QuantGranularity.TENSORWISE, "float_casting")
    elif scheme == "int8-dynamic":
        tool.add_dynamic_config(".*", EVERY_OP, 8)
    else:
        tool.add_static_config(".*", EVERY_OP, 8, 8)
        for end in ENDS:
            tool.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        statistics = _ranges(content, tool, samples)
    try:
        return bytes(tool.quantize(statistics).quantized_model)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ToolchainError(f"tflite: ai-edge-quantizer failed: {first_line(error)}; take route onnx2tf") from error


def _ranges(content: bytes, tool: quantizer.Quantizer, samples: list[list[np.ndarray]]) -> dict[str, Any]:
    """Return each tensor's least and greatest value over all samples.

    The quantizer's own rule is a moving average of each sample's range, which forgets the widest samples and clips them.
    """
    observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    observer.calibrate({"serving_default": [{f"args_{i}": x for i, x in enumerate(sample)} for sample in samples]}, tool._recipe_manager)
    return observer.get_model_qsvs()
