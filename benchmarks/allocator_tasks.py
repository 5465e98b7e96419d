"""The two tasks of the comparison of allocators: ResNet-20 on Fashion-MNIST and on CIFAR-10, with their data."""

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

REPOSITORY: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from edgecompress import data as datasets  # noqa: E402
from edgecompress.data import Samples, fetch_samples  # noqa: E402
from edgecompress.network.batches import Batch  # noqa: E402
from examples.resnet20_fashion_mnist import recipe  # noqa: E402
from examples.resnet20_fashion_mnist.network import ResNet20  # noqa: E402

FASHION: Final = "fashion_mnist"
CIFAR: Final = "cifar10"
TITLES: Final = {CIFAR: "ResNet-20 on CIFAR-10 (JPEG copy)", FASHION: "ResNet-20 on Fashion-MNIST"}
CIFAR_MEAN: Final = torch.tensor((125.3, 123.0, 113.9)).reshape(3, 1, 1)  # on the scale of 0 to 255
CIFAR_STD: Final = torch.tensor((63.0, 62.1, 66.7)).reshape(3, 1, 1)
MAX_SHIFT: Final = 4  # pixels; images have 32


class Task(NamedTuple):
    """A trained network with its data: `train` is augmented, `calibration` holds the same images unchanged, `test` inputs and labels."""

    name: str
    model: nn.Module
    example: Batch
    train: Dataset[Any]
    calibration: Dataset[Any]
    test: tuple[Batch, Tensor]


class Pixels:
    """A dataset of images `(n, 3, h, w)` in bytes that normalises each image when it is read."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Tensor:
        return (self.images[index] - CIFAR_MEAN) / CIFAR_STD


def fashion(*, images: int | None = None) -> Task:
    """Return the example of this repository, with all test images where Debian's package has them: plans differ by less than 5,000 tell.

    Args:
        images: So many of the training and of the test images; None for all.
    """
    train, calibration = (some(data(), images) for data in (recipe.train_data, recipe.calibration_data))
    test = recipe.eval_data()
    if recipe.FULL_SET.is_dir():
        test = datasets.load_data(recipe.FULL_SET, "eval", preprocessing=recipe.preprocessing(), example=recipe.example_inputs())
    return Task(FASHION, recipe.model(), recipe.example_inputs(), train, calibration, labelled(*fetch_samples(test, images)))


def cifar(data: Path, weights: Path, *, images: int | None = None) -> Task:
    """Return ResNet-20 with the weights of a file.

    Args:
        data: A tar file of `train/CLASS/*` and `test/CLASS/*`.
        weights: Safetensors, named as in the example's network.
        images: So many of the training and of the test images; None for all.
    """
    model = ResNet20(in_channels=3)
    model.load_state_dict(load_file(weights))
    sets = read_images(data)
    train, test = (Samples(Pixels(sets[name][0]), sets[name][1], source=f"{data.name}: {name}") for name in ("train", "test"))
    augmented = Samples(train.columns[0], train.labels, source=f"{train.source}, mirrored and shifted", transform=augment)
    drawn = labelled(*fetch_samples(test, images, seed=0))
    return Task(CIFAR, model.eval(), (torch.zeros(1, 3, 32, 32),), some(augmented, images), some(train, images), drawn)


def some(data: Dataset[Any], images: int | None) -> Dataset[Any]:
    """Return so many of a set, spread over all of it, for those of one class may stand together."""
    total = len(data)  # type: ignore[arg-type]
    return data if images is None else Subset(data, range(0, total, total // images)[:images])


def labelled(inputs: Batch, labels: Tensor | None) -> tuple[Batch, Tensor]:
    if labels is None:
        raise ValueError("the test images have no labels")
    return inputs, labels


def read_images(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images in bytes and labels of each split of a tar file, in the order of their names; classes count in alphabetical order."""
    found: dict[str, list[tuple[str, str, Tensor]]] = {"train": [], "test": []}
    for split, label, name, image in members(path):
        found[split].append((label, name, image))
    classes = sorted({label for label, _, _ in found["train"]})
    made = {}
    for split, rows in found.items():
        rows.sort(key=lambda row: row[:2])
        made[split] = (torch.stack([image for _, _, image in rows]), torch.tensor([classes.index(label) for label, _, _ in rows]))
    return made


def members(path: Path) -> Iterator[tuple[str, str, str, Tensor]]:
    """Yield split, class, name and pixels `(3, h, w)` of every image."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                split, label, name = member.name.split("/")[-3:]
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
                yield split, label, name, pixels.reshape(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def augment(x: Tensor) -> Tensor:
    """Mirror an image `(3, 32, 32)` half of the time and shift it by up to four pixels, filling with the mean colour."""
    if torch.rand(()) < 0.5:
        x = x.flip(-1)
    height, width = x.shape[1:]
    dy, dx = torch.randint(2 * MAX_SHIFT + 1, (2,)).tolist()
    return F.pad(x, (MAX_SHIFT,) * 4)[:, dy : dy + height, dx : dx + width]
