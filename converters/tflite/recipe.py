"""What ai-edge-quantizer is told for each scheme, for the whole file and for single layers, and the quantization itself."""

import re
from typing import Any, Final

import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.utils import qsv_utils

from converters.tflite.edits import edit, widen_biases
from converters.tflite.file import layer_ops
from edgecompress.errors import ToolchainError, first_line
from edgecompress.records import ConversionRequest

OPS: Final = qtyping.TFLOperationName
EVERY_OP: Final = OPS.ALL_SUPPORTED
ENDS: Final = (OPS.INPUT, OPS.OUTPUT)
WITHOUT_INT4: Final = (OPS.DEPTHWISE_CONV_2D, OPS.CONV_2D_TRANSPOSE)  # their kernels read no int4 weights
EVERYWHERE: Final = ".*"
INTEGER_BITS: Final = {"int8-static": 8, "int16x8": 16}  # of activations


def quantize(content: bytes, program: Any, request: ConversionRequest, samples: list[list[np.ndarray]]) -> bytes:
    """Return the float file quantized as the request says.

    Raises:
        UnsupportedError: A layer that no op of the file can be told to belong to.
        ToolchainError: The quantizer gave up.
    """
    tool = quantizer.Quantizer(content)
    _add(tool, EVERYWHERE, request.scheme)
    if request.io == "float32" and request.scheme in INTEGER_BITS:
        for end in ENDS:
            tool.update_quantization_recipe(EVERYWHERE, end, algorithm_key="no_quantize")
    for scheme, names in (layer_ops(content, program, request) if request.layers else {}).items():
        _add(tool, f"^({'|'.join(map(re.escape, names))});", scheme)
    try:
        statistics = _ranges(content, tool, samples) if tool.need_calibration else None
        quantized = bytes(tool.quantize(statistics).quantized_model)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ToolchainError(f"tflite: ai-edge-quantizer failed: {first_line(error)}; take route onnx2tf") from error
    return edit(quantized, widen_biases(content)) if "int16x8" in (request.scheme, *request.layers.values()) else quantized


def _add(tool: quantizer.Quantizer, scope: str, scheme: str) -> None:
    """Tell the quantizer the scheme of the ops whose output tensor's name, with a semicolon at its end, matches `scope`."""
    if scheme == "fp32":
        tool.update_quantization_recipe(scope, EVERY_OP, algorithm_key="no_quantize")
    elif scheme == "fp16":
        tool.add_weight_only_config(scope, EVERY_OP, 16, qtyping.QuantGranularity.TENSORWISE, "float_casting")
    elif scheme == "int8-dynamic":
        tool.add_dynamic_config(scope, EVERY_OP, 8)
    elif scheme == "int4-weights":
        tool.add_weight_only_config(scope, EVERY_OP, 4)
        for op in WITHOUT_INT4:
            tool.add_weight_only_config(scope, op, 8)
    else:
        tool.add_static_config(scope, EVERY_OP, INTEGER_BITS[scheme], 8)


def _ranges(content: bytes, tool: quantizer.Quantizer, samples: list[list[np.ndarray]]) -> dict[str, Any]:
    """Return each tensor's least and greatest value over all samples.

    The quantizer's own rule is a moving average of each sample's range, which forgets the widest samples and clips them.
    """
    observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    # The file takes indices in 32 bits, whatever the model does.
    named = [{f"args_{i}": x.astype(np.int32) if x.dtype == np.int64 else x for i, x in enumerate(sample)} for sample in samples]
    observer.calibrate({"serving_default": named}, tool._recipe_manager)
    return observer.get_model_qsvs()
