"""Build the tiny models the device tests run, beside this file: `python tests/golden/build_tiny.py`. Takes half a minute.

A seeded convolution network 1×8×8 → 3 scores as `tiny.tflite` (fp32), `tiny-int8.tflite` (static int8, integer inputs and outputs) and
`tiny.ptl`, with `tiny.npz`: 16 inputs and what eager torch answers. Shipped, so that no test needs a converter.
"""

import warnings
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe
from torch import nn

HERE = Path(__file__).parent


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    return nn.Sequential(*layers).eval()


def main() -> None:
    model = network()
    inputs = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        np.savez(HERE / "tiny.npz", input_0=inputs.numpy(), output_0=model(inputs).numpy())
    fp32 = HERE / "tiny.tflite"
    litert_torch.convert(model, (inputs[:1],)).export(str(fp32))
    engine = quantizer.Quantizer(str(fp32), recipe.static_wi8_ai8())
    name = next(iter(engine_inputs(fp32)))
    statistics = engine.calibrate({"serving_default": [{name: sample[None].numpy()} for sample in inputs]})
    (HERE / "tiny-int8.tflite").write_bytes(engine.quantize(statistics).quantized_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.freeze(torch.jit.trace(model, inputs[:1]))._save_for_lite_interpreter(str(HERE / "tiny.ptl"))


def engine_inputs(path: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path)).get_signature_list()["serving_default"]["inputs"]


if __name__ == "__main__":
    main()
