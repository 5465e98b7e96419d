"""EfficientNet-Lite0, trained on ImageNet, calibrated and compared on real photographs.

There are no labels, so nothing is fine-tuned: the measure is how often a compressed or quantized network names the same class as the
dense one (top-1 agreement).
"""

import torch
from torch import Tensor, nn

from edgecompress.data import Samples
from edgecompress.records import Preprocessing

from .network import efficientnet_lite0
from .photographs import crops


def model() -> nn.Module:
    return efficientnet_lite0()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, 224, 224),)


def preprocessing() -> Preprocessing:
    return Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=256, crop=224)


def eval_data() -> Samples:
    return crops("eval", preprocessing())


def calibration_data() -> Samples:
    return crops("calibration", preprocessing())
