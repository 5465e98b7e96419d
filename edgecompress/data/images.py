"""Preprocess images into model inputs: resize, crop, scale. The Raspberry Pi script repeats this arithmetic with Pillow and numpy alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from edgecompress.data.samples import check_shape
from edgecompress.errors import ConfigError, first_line
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

MODES = {1: "L", 3: "RGB"}  # Pillow's name for images of this many channels.
WIDE_MODES = ("I", "F")  # Pillow would clip these silently.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # Pillow gives their 16 bits as 32-bit integers.


class ImageFiles:
    """Image files as a column of inputs; each file is opened when its sample is read."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing | None, input_shape: tuple[int, ...]) -> None:
        check_preprocessing(preprocessing, input_shape)
        self.paths = tuple(paths)
        self.preprocessing = preprocessing
        self.input_shape = input_shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        return preprocess_image(open_image(path), self.preprocessing, self.input_shape, subject=str(path))


class ImageArray:
    """Images in memory as bytes, `(n, h, w)` or `(n, h, w, c)`, in a quarter of the memory of float inputs."""

    def __init__(self, array: np.ndarray, preprocessing: Preprocessing | None, input_shape: tuple[int, ...], *, subject: str) -> None:
        check_preprocessing(preprocessing, input_shape)
        self.array = array
        self.preprocessing = preprocessing
        self.input_shape = input_shape
        self.subject = subject
        if len(array):
            self[0]  # all images have one shape, so the first shows whether they fit

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return preprocess_image(self.array[index], self.preprocessing, self.input_shape, subject=self.subject)


def open_image(file: Path | BinaryIO, *, subject: str = "") -> Image.Image:
    """Return the image of a file, turned upright by its EXIF orientation, with 8 bits a channel.

    Of 16 bits the upper 8 are kept, as Pillow does with colour images of 16 bits. Grey, palette, CMYK and transparent images keep their
    mode; `preprocess_image` converts them.

    Args:
        subject: Names the image in an error; "" stands for the path.

    Raises:
        ConfigError: Missing, truncated, not an image, too large, or of float or 32-bit values, whose range nothing tells.
    """
    subject = subject or str(file)
    image = decode_image(file, subject=subject)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode in WIDE_MODES:
        raise ConfigError(f"{subject}: more than 16 bits a channel (mode {image.mode}); save it with 8")
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def decode_image(file: Path | BinaryIO, *, subject: str) -> Image.Image:
    """Return the image of a file as Pillow decodes it, upright.

    Raises:
        ConfigError: Missing, truncated, not an image, or too large.
    """
    try:
        with Image.open(file) as opened:
            kind = opened.format
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow says SyntaxError for a broken PNG
        raise ConfigError(f"{subject}: unreadable image: {first_line(error)}; replace or remove it") from error
    image.format = kind  # a turned image has lost it
    return image


def preprocess_image(
    image: Image.Image | np.ndarray, preprocessing: Preprocessing | None, input_shape: tuple[int, ...], *, subject: str = "image"
) -> Tensor:
    """Return an image as a float32 input `(c, h, w)`: short side resized (bilinear), centre cropped, `(x / 255 − mean) / std`.

    Args:
        image: A Pillow image, or uint8 `(h, w)` or `(h, w, c)`; grey and colour images are converted to the channels of the model.
        preprocessing: None scales to [0, 1] only.
        input_shape: `(c, h, w)`, without the batch axis.
        subject: Names the image in an error.

    Raises:
        ConfigError: The result would not have `input_shape`, or the model takes neither grey nor colour images.
    """
    check_preprocessing(preprocessing, input_shape)
    channels = input_shape[0]
    resize, crop = (preprocessing.resize, preprocessing.crop) if preprocessing else (None, None)
    if resize or crop or not isinstance(image, np.ndarray) or _count_channels(image) != channels:
        image = _resize_and_crop(_convert_to_pillow(image, subject).convert(MODES[channels]), resize, crop, subject)
    array = np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))  # (c, h, w)
    check_shape(array.shape, input_shape, subject)
    x = torch.from_numpy(array.astype(np.float32)) / 255
    if preprocessing is None:
        return x
    return (x - torch.tensor(preprocessing.mean)[:, None, None]) / torch.tensor(preprocessing.std)[:, None, None]


def read_image_shape(example: Batch, path: Path) -> tuple[int, ...]:
    """Return the shape of the model's only input, without the batch axis.

    Raises:
        ConfigError: The model takes several inputs.
    """
    if len(example) != 1:
        raise ConfigError(f"{path}: images alone, the model takes {len(example)} inputs; give all of them in an .npz, or by the recipe")
    return tuple(example[0].shape[1:])


def check_preprocessing(preprocessing: Preprocessing | None, input_shape: tuple[int, ...]) -> None:
    """Refuse a preprocessing that cannot give inputs `(c, h, w)`.

    Raises:
        ConfigError: `input_shape` is no image, or mean and std do not fit it.
    """
    if len(input_shape) != 3 or input_shape[0] not in MODES:
        raise ConfigError(
            f"input {input_shape}: no grey or colour image (c, h, w); give data as float32 arrays in an .npz, or by the recipe"
        )
    if preprocessing is None:
        return
    for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(values) not in (1, input_shape[0]) or not np.isfinite(values).all():
            raise ConfigError(f"preprocessing: {name} {values} for {input_shape[0]} channels; give one number, or one a channel")
    if min(preprocessing.std) <= 0:
        raise ConfigError(f"preprocessing: std {preprocessing.std}; it must be positive")
    if any(size is not None and size < 1 for size in (preprocessing.resize, preprocessing.crop)):
        raise ConfigError(f"preprocessing: resize {preprocessing.resize}, crop {preprocessing.crop}; sizes are pixels, 1 or more")


def _resize_and_crop(image: Image.Image, resize: int | None, crop: int | None, subject: str) -> Image.Image:
    if resize:
        scale = resize / min(image.size)
        image = image.resize((max(resize, int(image.width * scale)), max(resize, int(image.height * scale))), Image.Resampling.BILINEAR)
    if crop:
        if min(image.size) < crop:
            raise ConfigError(
                f"{subject}: {image.width}×{image.height} pixels, smaller than the crop of {crop}; give a larger image or resize"
            )
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    return image


def _convert_to_pillow(image: Image.Image | np.ndarray, subject: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if image.dtype != np.uint8 or _count_channels(image) not in MODES:
        raise ConfigError(f"{subject}: {image.dtype} {image.shape} is no grey or colour image; give uint8 (h, w), (h, w, 1) or (h, w, 3)")
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _count_channels(image: np.ndarray) -> int:
    return 1 if image.ndim == 2 else image.shape[-1]
