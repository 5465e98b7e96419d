"""The example script for boards, run with both runtimes that it supports."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.paths import REPOSITORY

from edgecompress import records
from edgecompress.records import Artifact, Preprocessing, QuantSpec, TensorSpec

ROOT = REPOSITORY
SCRIPT = ROOT / "examples/raspberry_pi/classify.py"
PREBUILT = ROOT / "examples/prebuilt/resnet20_fashion_mnist-int8-static.tflite"
OLD_RUNTIME = ROOT / ".venv-tflite-runtime/bin/python"
MAKE_OLD_RUNTIME = "python3.11 -m venv .venv-tflite-runtime && .venv-tflite-runtime/bin/pip install tflite-runtime==2.14.0 'numpy<2' pillow"
RUNTIMES = {"ai-edge-litert": Path(sys.executable), "tflite-runtime": OLD_RUNTIME}

# A network whose answer is the brightest channel, with float and with int8 inputs.
GENERATE = """
import sys
import numpy as np, torch, litert_torch
from torch import nn
from ai_edge_quantizer import qtyping, quantizer

conv = nn.Conv2d(3, 3, 1, bias=False)
conv.weight.data = 10 * torch.eye(3)[:, :, None, None]
net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
edge = litert_torch.convert(litert_torch.to_channel_last_io(net, args=[0]), (torch.zeros(1, 8, 8, 3),))
edge.export(sys.argv[1] + "/float32.tflite")
tool = quantizer.Quantizer(sys.argv[1] + "/float32.tflite")
tool.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
samples = [{"args_0": np.broadcast_to(np.float32(2 * row - 1), (1, 8, 8, 3)).copy()} for row in np.eye(3)] * 10
result = tool.quantize(tool.calibrate({"serving_default": samples}, num_threads=1))
open(sys.argv[1] + "/int8.tflite", "wb").write(bytes(result.quantized_model))
"""


def unavailable(what: str, how: str) -> None:
    """Skip with the command that helps; fail in CI, where nothing may be missing."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is missing; {how}")


def classify(runtime: str, model: Path, *images: Path) -> list[str]:
    python = RUNTIMES[runtime]
    if not python.exists():
        unavailable(runtime, MAKE_OLD_RUNTIME)
    done = subprocess.run([python, SCRIPT, model, *images], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the two models with their manifests and one image a colour."""
    folder = tmp_path_factory.mktemp("colours")
    done = subprocess.run([sys.executable, "-c", GENERATE, folder], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for dtype, scale, zero_point in (("float32", None, None), ("int8", 2 / 255, 0)):
        manifest = Artifact(
            path=f"{dtype}.tflite", name="colours", model="dense", format="tflite", route="", sha256="", size_bytes=0,
            quant=QuantSpec(scheme="fp32"), plan_sha256="", weights_sha256="", toolchain={},
            inputs=(TensorSpec(name="x", shape=(1, 8, 8, 3), dtype=dtype, layout="NHWC", scale=scale, zero_point=zero_point),),
            outputs=(TensorSpec(name="y", shape=(1, 3), dtype=dtype),),
            preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=10, crop=8),
            labels=("red", "green", "blue"),
        )  # fmt: skip
        (folder / f"{dtype}.tflite.json").write_bytes(records.to_json(manifest))
    for channel, name in enumerate(manifest.labels):
        pixels = np.full((16, 20, 3), 40, np.uint8)
        pixels[..., channel] = 220
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_names_the_colour(runtime: str, dtype: str, colours: Path) -> None:
    images = [colours / f"{name}.png" for name in ("red", "green", "blue")]
    lines = classify(runtime, colours / f"{dtype}.tflite", *images)
    assert [line.split(": ")[1].split()[0] for line in lines] == ["red", "green", "blue"]
    assert all(float(line.split()[-1]) > 0.99 for line in lines)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_prebuilt_model_names_the_sample_images(runtime: str) -> None:
    if not PREBUILT.exists():
        unavailable(str(PREBUILT.relative_to(ROOT)), "make prebuilt")
    names = {"ankle_boot": "Ankle boot", "pullover": "Pullover", "trouser": "Trouser"}
    lines = classify(runtime, PREBUILT, *(ROOT / f"examples/raspberry_pi/images/{name}.png" for name in names))
    assert [line.split(": ")[1].rsplit(" ", 1)[0] for line in lines] == list(names.values())


def test_usage_is_shown_without_an_image() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "model.tflite"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "usage" in done.stderr
