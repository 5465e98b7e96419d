"""Write a dense network as plain int8 by the tools of a format, as their tutorials do: nothing here is edgecompress's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static
from torch import Tensor, nn

CALIBRATION_SAMPLES = 200


def quantize_by_litert(model: nn.Module, inputs: Tensor, path: Path) -> None:
    """Write TFLite by litert-torch, then ai-edge-quantizer with its own static recipe and its own rule for ranges."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    floating = path.with_suffix(".float.tflite")
    litert_torch.convert(model, (inputs[:1],)).export(str(floating))
    tool = quantizer.Quantizer(str(floating), recipe.static_wi8_ai8())
    kind = np.int32 if inputs.dtype == torch.int64 else np.float32
    samples = [{"args_0": x[None].numpy().astype(kind)} for x in inputs[:CALIBRATION_SAMPLES]]
    tool.quantize(tool.calibrate({"serving_default": samples})).export_model(str(path), overwrite=True)


class Samples(CalibrationDataReader):
    """The samples that onnxruntime takes ranges from."""

    def __init__(self, inputs: Tensor) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = ({"x": x[None].numpy()} for x in inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantize_by_onnxruntime(model: nn.Module, inputs: Tensor, path: Path) -> None:
    """Write ONNX by torch.onnx, then onnxruntime.quantization with a scale for each channel of a weight, else with its own defaults."""
    floating, ready = path.with_suffix(".float.onnx"), path.with_suffix(".ready.onnx")
    torch.onnx.export(model, (inputs[:1],), floating, dynamo=True, input_names=["x"], external_data=False, verbose=False)
    quant_pre_process(floating, ready, skip_symbolic_shape=True)  # it does not read the embedder; all shapes are fixed
    quantize_static(ready, path, Samples(inputs[:CALIBRATION_SAMPLES]), per_channel=True)


QUANTIZE = {".tflite": quantize_by_litert, ".onnx": quantize_by_onnxruntime}


def load_onnx_toolchain() -> None:
    """Load the modules that torch.export and torch.onnx import at their first call, so that processes forked afterwards share them."""
    torch.onnx.export(nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)
