"""Quantize a float TFLite file with ai-edge-quantizer: a scheme for the whole file, others for single layers."""

import re
from typing import Any, Final

import msgspec
import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.utils import qsv_utils

from converters.tflite.edits import edit_file, widen_biases
from converters.tflite.file import find_layer_ops
from converters.tflite.float_tail import find_float_ops
from edgecompress.errors import ToolchainError, first_line
from edgecompress.faults.remedies import find_toolchain_remedy
from edgecompress.records import ConversionRequest
from edgecompress.targets import FLOAT32, FLOAT_TAIL, SCHEMES

OPS: Final = qtyping.TFLOperationName
EVERY_OP: Final = OPS.ALL_SUPPORTED
ENDS: Final = (OPS.INPUT, OPS.OUTPUT)
WITHOUT_INT4: Final = (OPS.DEPTHWISE_CONV_2D, OPS.CONV_2D_TRANSPOSE)  # their kernels read no int4 weights
EVERYWHERE: Final = ".*"


def quantize_file(content: bytes, program: Any, request: ConversionRequest, samples: list[list[np.ndarray]]) -> bytes:
    """Return the float file quantized to the schemes of the request.

    Raises:
        UnsupportedError: No op of the file can be matched with a layer that the request names.
        ToolchainError: The quantizer gave up.
    """
    tool = quantizer.Quantizer(content)
    _add_scheme(tool, EVERYWHERE, request.scheme)
    if request.io == "float32" and SCHEMES[request.scheme].has_static_activations:
        for end in ENDS:
            tool.update_quantization_recipe(EVERYWHERE, end, algorithm_key="no_quantize")
    for scheme, names in _ops_of_schemes(content, program, request, samples).items():
        _add_scheme(tool, f"^({'|'.join(map(re.escape, names))});", scheme)
    try:
        statistics = _calibrate(content, tool, samples) if tool.need_calibration else None
        quantized = bytes(tool.quantize(statistics).quantized_model)
    except (RuntimeError, ValueError, KeyError) as error:
        remedy = find_toolchain_remedy(error) or "take route onnx2tf"
        raise ToolchainError(f"tflite: ai-edge-quantizer failed: {first_line(error)}; {remedy}") from error
    has_int16 = any(SCHEMES[scheme].activation_bits == 16 for scheme in (request.scheme, *request.layers.values()))
    return edit_file(quantized, widen_biases(content)) if has_int16 else quantized


def _ops_of_schemes(content: bytes, program: Any, request: ConversionRequest, samples: list[list[np.ndarray]]) -> dict[str, list[str]]:
    """Return, for each scheme that some ops have instead of the file's, the names of their output tensors."""
    layers = {name: scheme for name, scheme in request.layers.items() if name != FLOAT_TAIL}
    found = find_layer_ops(content, program, msgspec.structs.replace(request, layers=layers)) if layers else {}
    if FLOAT_TAIL in request.layers and (names := find_float_ops(content, samples, SCHEMES[request.scheme].activation_bits)):
        found.setdefault(FLOAT32, []).extend(names)
    return found


def _add_scheme(tool: quantizer.Quantizer, scope: str, scheme: str) -> None:
    """Tell the quantizer the scheme of the ops whose output tensor's name, with a semicolon at its end, matches `scope`."""
    known = SCHEMES[scheme]
    if known.weight_bits == 32:
        tool.update_quantization_recipe(scope, EVERY_OP, algorithm_key="no_quantize")
    elif known.weight_bits == 16:
        tool.add_weight_only_config(scope, EVERY_OP, 16, qtyping.QuantGranularity.TENSORWISE, "float_casting")
    elif known.dynamic:
        tool.add_dynamic_config(scope, EVERY_OP, known.weight_bits)
    elif known.has_static_activations:
        tool.add_static_config(scope, EVERY_OP, known.activation_bits, known.weight_bits)
    else:
        tool.add_weight_only_config(scope, EVERY_OP, known.weight_bits)
        for op in WITHOUT_INT4 if known.weight_bits == 4 else ():
            tool.add_weight_only_config(scope, op, 8)


def _calibrate(content: bytes, tool: quantizer.Quantizer, samples: list[list[np.ndarray]]) -> dict[str, Any]:
    """Return the smallest and largest value of each tensor over all samples.

    The quantizer's own rule is a moving average of the ranges of samples, which clips the widest samples.
    """
    observer = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    # TFLite files take indices in 32 bits, where the model takes 64.
    named = [{f"args_{i}": x.astype(np.int32) if x.dtype == np.int64 else x for i, x in enumerate(sample)} for sample in samples]
    observer.calibrate({"serving_default": named}, tool._recipe_manager)
    return observer.get_model_qsvs()
