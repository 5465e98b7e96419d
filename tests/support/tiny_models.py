"""The tiny models of tests/golden, with manifests as export writes them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecompress.files import hash_file
from edgecompress.records import Artifact, QuantSpec, TensorSpec, to_json

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("tiny.tflite", "tiny-int8.tflite", "tiny.ptl")


@pytest.fixture
def tiny(tmp_path):
    """A folder with the three models and their manifests."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in MODELS:
        path = Path(shutil.copy(GOLDEN / name, folder))
        write_manifest(path)
    return folder


@pytest.fixture(scope="session")
def tiny_samples():
    """(inputs (16, 1, 8, 8), what eager torch answers (16, 3))."""
    with np.load(GOLDEN / "tiny.npz", allow_pickle=False) as arrays:
        return arrays["input_0"], arrays["output_0"]


def write_manifest(path):
    manifest = Artifact(
        path=path.name,
        name=path.stem,
        model="dense",
        format="torchscript" if path.suffix == ".ptl" else "tflite",
        route="",
        sha256=hash_file(path),
        size_bytes=path.stat().st_size,
        quant=QuantSpec(scheme="int8-static" if "int8" in path.stem else "fp32"),
        inputs=(TensorSpec(name="args_0", shape=(1, 1, 8, 8), dtype="float32", layout="NCHW"),),
        outputs=(TensorSpec(name="output_0", shape=(1, 3), dtype="float32"),),
        preprocessing=None,
        labels=(),
        plan_sha256="",
        weights_sha256="",
        toolchain={},
    )
    path.with_name(f"{path.name}.json").write_bytes(to_json(manifest))
