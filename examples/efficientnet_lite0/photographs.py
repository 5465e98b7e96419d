"""Crops of the photographs that scikit-image and scikit-learn ship inside their packages; nothing is downloaded.

A photograph whose subject the dense network names is cut in two: evaluation crops come from the two thirds that hold the subject,
calibration crops from the other third, so that no pixel serves both. The others (an astronaut and coins are no ImageNet class, and the
palace is taken for a lakeside) are for calibration alone: what the network answers there is a guess, and a guess flips at the least noise.
"""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from torch import Tensor

from edgecompress.data import Samples, open_image, preprocess_image
from edgecompress.errors import ConfigError
from edgecompress.records import Preprocessing

# With the side of the third that is for calibration, or "all". The packages' textures, micrographs and drawings are left out: they are not
# what this network was trained on.
PHOTOGRAPHS = {
    "skimage/data/astronaut.png": "all",
    "skimage/data/camera.png": "left",  # tripod
    "skimage/data/chelsea.png": "right",  # Egyptian cat
    "skimage/data/coffee.png": "left",  # espresso
    "skimage/data/coins.png": "all",
    "skimage/data/motorcycle_left.png": "left",  # moped
    "skimage/data/rocket.jpg": "left",  # missile
    "sklearn/datasets/images/china.jpg": "all",
    "sklearn/datasets/images/flower.jpg": "left",  # daisy
}
SIDES = (1.0, 0.85, 0.7)  # of a crop, in short sides of its part of the photograph
PLACES = (0.0, 0.5, 1.0)  # of a crop, along each axis of the room it has
INPUT = (3, 224, 224)


class Crops:
    """Crops and their mirror images, made when asked for."""

    def __init__(self, split: str, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        chosen = {name: side for name, side in PHOTOGRAPHS.items() if split == "calibration" or side != "all"}
        self.images = [_part(open_image(_path(name)).convert("RGB"), split, side) for name, side in chosen.items()]
        self.boxes = [(i, box, flip) for i, image in enumerate(self.images) for box in _boxes(*image.size) for flip in (False, True)]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Tensor:
        photograph, box, flip = self.boxes[index]
        image = self.images[photograph].crop(box)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return preprocess_image(image, self.preprocessing, INPUT)


def crops(split: str, preprocessing: Preprocessing) -> Samples:
    """Return the unlabelled crops of "calibration" or "eval"."""
    inputs = Crops(split, preprocessing)
    return Samples(inputs, None, source=f"{len(inputs)} crops of {len(inputs.images)} photographs of scikit-image and scikit-learn")


def _part(image: Image.Image, split: str, side: str) -> Image.Image:
    """Return the third at `side`, or all, for calibration; the rest for evaluation."""
    if side == "all":
        return image
    width, height = image.size
    x, y = width // 3, height // 3
    third = {
        "left": (0, 0, x, height),
        "right": (width - x, 0, width, height),
        "top": (0, 0, width, y),
        "bottom": (0, height - y, width, height),
    }[side]
    rest = {
        "left": (x, 0, width, height),
        "right": (0, 0, width - x, height),
        "top": (0, y, width, height),
        "bottom": (0, 0, width, height - y),
    }
    return image.crop(third if split == "calibration" else rest[side])


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


def _path(name: str) -> Path:
    package, _, file = name.partition("/")
    return _package(package) / file


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"efficientnet_lite0: {name} is not installed, its photographs are the data; pip install 'edgecompress[examples]'"
        )
    return Path(spec.submodule_search_locations[0])
