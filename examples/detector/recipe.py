"""A small detector of synthetic scenes: boxes and class scores in one output, its own loss, and mean average precision as its metric."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecompress import OutputSpec, Preprocessing

from . import detection
from .network import CLASSES, SIDE, Detector
from .scenes import Scenes

HERE = Path(__file__).parent


def model() -> nn.Module:
    """Return the network with the weights that `train.py` writes, or untrained where they are missing."""
    network = Detector()
    weights = HERE / "weights.safetensors"
    if weights.exists():
        network.load_state_dict(load_file(weights))
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, SIDE, SIDE),)


def preprocessing() -> Preprocessing:
    return Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def labels() -> tuple[str, ...]:
    return CLASSES


def outputs() -> OutputSpec:
    """Return what the output holds: `(n, 7, 180)`, one column a detection, before suppression of double ones (`detection.detect`)."""
    corners = ("left", "top", "right", "bottom")
    return OutputSpec(kind="values", axis=1, channels=(*(f"{side} in pixels" for side in corners), *(f"score of {c}" for c in CLASSES)))


def train_data() -> Scenes:
    return Scenes(2000, seed=1, name="training")


def eval_data() -> Scenes:
    return Scenes(500, seed=2, name="evaluation")


def calibration_data() -> Scenes:
    return Scenes(500, seed=3, name="calibration")


loss = detection.loss


def metric() -> detection.MeanAveragePrecision:
    return detection.MeanAveragePrecision()


higher_is_better = True
