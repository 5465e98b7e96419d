"""Crops of the photographs that scikit-image and scikit-learn ship inside their packages; nothing is downloaded.

Each photograph is cut in two across its longer side: calibration crops come from one half, evaluation crops from the other, so that no
pixel serves both. The halves alternate between photographs.
"""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from torch import Tensor

from edgecompress.data import Samples, open_image, preprocess
from edgecompress.errors import ConfigError
from edgecompress.records import Preprocessing

PHOTOGRAPHS = (  # of things; the packages' textures, micrographs and drawings are not what this network was trained on
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
SIDES = (1.0, 0.8, 0.65)  # of a crop, in short sides of the half
PLACES = (0.0, 0.5, 1.0)  # of a crop, along each axis of the room it has
SIDES_OF_INPUT = (3, 224, 224)


class Crops:
    """Crops and their mirror images, made when asked for."""

    def __init__(self, split: str, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.images = [_half(open_image(path).convert("RGB"), (split == "eval") == (i % 2 == 0)) for i, path in enumerate(_paths())]
        self.boxes = [(i, box, flip) for i, image in enumerate(self.images) for box in _boxes(*image.size) for flip in (False, True)]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Tensor:
        photograph, box, flip = self.boxes[index]
        image = self.images[photograph].crop(box)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return preprocess(image, self.preprocessing, SIDES_OF_INPUT)


def crops(split: str, preprocessing: Preprocessing) -> Samples:
    """Return the unlabelled crops of "calibration" or "eval"."""
    inputs = Crops(split, preprocessing)
    return Samples(inputs, None, source=f"{len(inputs)} crops of {len(inputs.images)} photographs of scikit-image and scikit-learn")


def _half(image: Image.Image, first: bool) -> Image.Image:
    width, height = image.size
    if width >= height:
        return image.crop((0, 0, width // 2, height) if first else (width // 2, 0, width, height))
    return image.crop((0, 0, width, height // 2) if first else (0, height // 2, width, height))


def _boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return squares `(left, top, right, bottom)`, without repetition."""
    boxes = []
    for share in SIDES:
        side = round(share * min(width, height))
        for y in PLACES:
            for x in PLACES:
                left, top = round(x * (width - side)), round(y * (height - side))
                boxes.append((left, top, left + side, top + side))
    return list(dict.fromkeys(boxes))


def _paths() -> list[Path]:
    return [_package(name.partition("/")[0]) / name.partition("/")[2] for name in PHOTOGRAPHS]


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"efficientnet_lite0: {name} is not installed, its photographs are the data; pip install 'edgecompress[examples]'"
        )
    return Path(spec.submodule_search_locations[0])
