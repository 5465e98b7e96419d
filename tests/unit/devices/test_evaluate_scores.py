"""What an evaluation reads from scores alone: the rank of a label, and the step between the numbers a quantized file can give."""

import msgspec
import numpy as np
import pytest
from support.paths import REPOSITORY

from edgecompress.devices.scores import quantization_step, rank_labels
from edgecompress.records import Artifact, read_record

MANIFEST = REPOSITORY / "examples/prebuilt/resnet20_fashion_mnist-int8-static.tflite.json"


@pytest.mark.parametrize(
    ("scores", "label", "rank"),
    [
        ([3, 2, 1], 0, 0),
        ([3, 2, 1], 2, 2),
        ([2, 2, 2], 0, 0),
        ([2, 2, 2], 1, 1),  # of equal scores the lower class is the arg-max
        ([1, np.nan, 0], 1, 3),
        ([np.inf, 0, 0], 0, 3),
    ],
)
def test_rank_of_a_label_among_its_scores(scores, label, rank):
    assert rank_labels(np.array([scores], np.float32), np.array([label])).tolist() == [rank]


@pytest.mark.parametrize(
    ("values", "scale", "step"),
    [
        ([0.0, 1.0], 0.25, 0.25),  # the file says it
        ([0.5, 0.75, 1.5, 0.5], None, 0.25),  # values on a grid
        (np.linspace(0, 51, 1000), None, 0.2),  # floats: as if 256 levels spanned them
        ([2.0, 2.0], None, 0.0),
    ],
)
def test_quantization_step_of_an_output(values, scale, step):
    manifest = read_record(MANIFEST, Artifact)
    found = quantization_step(np.array(values, np.float32), msgspec.structs.replace(manifest.outputs[0], scale=scale))
    assert found == pytest.approx(step, rel=1e-6)
