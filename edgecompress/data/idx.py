"""The idx files of MNIST and its relatives, plain or gzipped.

Format: two zero bytes, a type code, the number of axes, one big-endian uint32 per axis, then the values. Images and labels of these sets
are unsigned bytes (code 8); no other type is read.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from edgecompress.data.images import ImageArray, read_image_shape
from edgecompress.data.samples import Samples
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

UINT8 = 8
SPLITS = {"train": "train", "eval": "t10k"}


def can_load(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*-idx?-ubyte*"))


def load_split(path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return a split of an idx folder.

    Raises:
        ConfigError: A file is missing or damaged, or the images do not fit the model.
    """
    images, labels = read_split(path, split)
    if len(images) == 0:
        raise ConfigError(f"{path}: its {split} files hold no samples; fetch them again")
    inputs = ImageArray(images, preprocessing, read_image_shape(example, path), subject=str(path))
    return Samples(inputs, torch.from_numpy(labels.astype(np.int64)), source=f"{path}: {len(images)} images")


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an idx file.

    Raises:
        ConfigError: Not an idx file of unsigned bytes, or truncated.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: unreadable idx file: {error}; fetch it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UINT8:
        raise ConfigError(f"{path}: not an idx file of unsigned bytes; it starts with {data[:4].hex() or 'nothing'}")
    axes = data[3]
    header = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", data[4:header]) if len(data) >= header else ()
    if len(data) - header != math.prod(shape):
        raise ConfigError(f"{path}: its header promises {math.prod(shape)} bytes, {max(0, len(data) - header)} follow; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array as an idx file; a .gz has no time stamp, so that equal arrays give equal files."""
    header = bytes([0, 0, UINT8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images `(n, h, w)` and labels `(n,)` of "train" or "eval" from the usual file names.

    Raises:
        ConfigError: A file is missing, or images and labels differ in number.
    """
    arrays = []
    for what, axes in (("images", 3), ("labels", 1)):
        stem = f"{SPLITS[split]}-{what}-idx{axes}-ubyte"
        found = [path for path in (folder / f"{stem}.gz", folder / stem) if path.exists()]
        if not found:
            raise ConfigError(f"{folder}: no {stem} or {stem}.gz; an idx folder holds train-… and t10k-… files")
        array = read_idx(found[0])
        if array.ndim != axes:
            raise ConfigError(f"{found[0]}: {array.ndim} axes, {axes} expected")
        arrays.append(array)
    images, labels = arrays
    if len(images) != len(labels):
        raise ConfigError(f"{folder}: {len(images)} images but {len(labels)} labels for {split}")
    return images, labels
