"""ResNet-20 on Fashion-MNIST: the example that ships with edgecompress, and what it exports when no recipe is given."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompress.data import Samples, load_data
from edgecompress.records import Preprocessing

from .network import ResNet20

HERE = Path(__file__).parent
SHIPPED = HERE / "data"
FULL_SET = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, pixels in [0, 1]
SHIFT = 2  # pixels
INPUT = (1, 28, 28)


def model() -> nn.Module:
    """Return the network with the weights that `train.py` writes, or untrained where they are missing."""
    network = ResNet20()
    weights = HERE / "weights.safetensors"
    if weights.exists():
        network.load_state_dict(load_file(weights))
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, *INPUT),)


def preprocessing() -> Preprocessing:
    return Preprocessing(mean=(MEAN,), std=(STD,))


def labels() -> tuple[str, ...]:
    return ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def train_data() -> Samples:
    """Return augmented training images: all 60,000 where the Debian package is installed, else the 10,000 of this folder."""
    samples = calibration_data()
    samples.transform = augment
    return samples


def eval_data() -> Samples:
    """Return the 5,000 test images of this folder, whatever is installed, so that accuracies can be compared."""
    return _named(load_data(SHIPPED, "eval", preprocessing=preprocessing(), example=example_inputs()), "the shipped test images")


def calibration_data() -> Samples:
    """Return training images as they are."""
    if FULL_SET.is_dir():
        return _named(load_data(FULL_SET, "train", preprocessing=preprocessing(), example=example_inputs()), "the full training set")
    return _named(load_data(SHIPPED, "train", preprocessing=preprocessing(), example=example_inputs()), "the shipped training images")


def augment(x: Tensor) -> Tensor:
    """Mirror an image `(1, 28, 28)` half of the time and shift it by up to two pixels, filling with black."""
    if torch.rand(()) < 0.5:
        x = x.flip(-1)
    dy, dx = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    return F.pad(x, (SHIFT,) * 4, value=-MEAN / STD)[:, dy : dy + 28, dx : dx + 28]


def _named(samples: Samples, which: str) -> Samples:
    samples.class_names = labels()
    samples.source = f"Fashion-MNIST, {which}: {len(samples)} images"
    return samples
