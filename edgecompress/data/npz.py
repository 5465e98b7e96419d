"""Numpy archives: `x_train, y_train, x_test, y_test`, or `inputs, labels` as one set. Pickled (object) arrays are refused.

Labels are class indices, `(n,)`, or targets of any other numbers and shape.

The inputs of a model that takes several are `x_train_0, x_train_1, …`, `x_test_0, …`, or `inputs_0, inputs_1, …`.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgecompress.data.images import ImageArray
from edgecompress.data.samples import Column, Samples, check_finite, check_shape
from edgecompress.data.split import HELD_OUT, select_split
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

NAMES = {"train": ("x_train", "y_train"), "eval": ("x_test", "y_test")}
ONE_SET = ("inputs", "labels")


def can_load(path: Path) -> bool:
    return path.is_file() and path.suffix == ".npz"


def load_split(path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return a split: uint8 arrays are images to preprocess, floats are ready inputs, integers are indices for a model that takes indices.

    Raises:
        ConfigError: Unreadable, a pickle, an array is missing, or shapes or values do not fit.
    """
    columns, y, note = _read_arrays(path, split, len(example))
    for x in columns:
        if x.ndim == 0 or len(x) == 0:
            raise ConfigError(f"{path}: holds no samples; give at least one")
    lengths = {len(x) for x in columns}
    if len(lengths) != 1:
        raise ConfigError(f"{path}: its inputs have {' and '.join(map(str, sorted(lengths)))} samples; give every input the same number")
    n = lengths.pop()
    if y is not None and n != len(y):
        raise ConfigError(f"{path}: {n} inputs but {len(y)} labels; give one label an input")
    if note:
        rows = select_split(range(n), split, str(path))
        columns, y = [x[rows] for x in columns], None if y is None else y[rows]
    labels = None if y is None else _convert_targets(y, path)
    inputs = tuple(_make_column(x, path, preprocessing, wanted) for x, wanted in zip(columns, example, strict=True))
    return Samples(inputs if len(inputs) > 1 else inputs[0], labels, source=f"{path}: {len(columns[0])} samples{note}")


def _read_arrays(path: Path, split: str, count: int) -> tuple[list[np.ndarray], np.ndarray | None, str]:
    """Return the array of each input, the labels, and how an archive without splits was divided; "" for one with splits."""
    try:
        if not zipfile.is_zipfile(path):  # np.load would take a bare .npy or try a pickle
            raise ConfigError(f"{path}: not an .npz archive; save it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            of_split, of_set = ([name] if count == 1 else [f"{name}_{i}" for i in range(count)] for name in (NAMES[split][0], ONE_SET[0]))
            x_names, y_name = (of_split, NAMES[split][1]) if of_split[0] in names else (of_set, ONE_SET[1])
            if missing := [name for name in x_names if name not in names]:
                found = ", ".join(sorted(names)) or "nothing"
                wanted = f"{of_split[0]} or {of_set[0]}" if missing == of_set else missing[0]
                raise ConfigError(f"{path}: no array {wanted}, it holds {found}; name the arrays so")
            columns = [archive[name] for name in x_names]
            y = archive[y_name] if y_name in names else None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ConfigError(f"{path}: holds a pickled (object) array, which may run code; save plain number arrays") from error
        raise ConfigError(f"{path}: unreadable archive: {error}; save it again with numpy.savez") from error
    return columns, y, f", {HELD_OUT[split]}" if x_names == of_set else ""


def _make_column(x: np.ndarray, path: Path, preprocessing: Preprocessing | None, wanted: Tensor) -> Column:
    input_shape = tuple(wanted.shape[1:])
    if not wanted.is_floating_point():
        if not np.issubdtype(x.dtype, np.integer):
            raise ConfigError(f"{path}: inputs are {x.dtype}, the model takes {str(wanted.dtype).removeprefix('torch.')}; give integers")
        check_shape(x.shape[1:], input_shape, str(path))
        return _convert_to_tensor(x, path, "inputs").to(wanted.dtype)
    if x.dtype == np.uint8:
        return ImageArray(_move_channels_last(x, input_shape, path), preprocessing, input_shape, subject=str(path))
    if not np.issubdtype(x.dtype, np.floating):
        raise ConfigError(f"{path}: inputs are {x.dtype}; give images as uint8, or ready inputs as float32")
    inputs = _convert_to_tensor(x.astype(np.float32), path, "inputs")
    if tuple(x.shape[1:]) != input_shape and len(input_shape) == 3:
        channels, height, width = input_shape
        if tuple(x.shape[1:]) == (height, width, channels):
            inputs = inputs.permute(0, 3, 1, 2).contiguous()  # (n, c, h, w)
        elif tuple(x.shape[1:]) == (height, width) and channels == 1:
            inputs = inputs[:, None]  # (n, 1, h, w)
    check_shape(inputs.shape[1:], input_shape, str(path))
    check_finite(inputs, str(path))
    return inputs


def _convert_targets(y: np.ndarray, path: Path) -> Tensor:
    """Return the targets of an archive: floats as float32, one integer a sample as class indices `(n,)`, others as they are."""
    targets = _convert_to_tensor(y, path, "labels")
    if targets.is_floating_point():
        return targets.float()
    if targets.dtype == torch.bool:
        return targets
    return (targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets).long()


def _move_channels_last(x: np.ndarray, input_shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Return images as `(n, h, w)` or `(n, h, w, c)`; channels come first where that fits the model's input."""
    if x.ndim == 3:
        return x
    if x.ndim != 4:
        raise ConfigError(f"{path}: uint8 inputs of shape {x.shape} are no images; give (n, h, w, c), (n, c, h, w), (n, h, w) or float32")
    first = x.shape[1:] == input_shape or (x.shape[1] in (1, 3) and x.shape[3] not in (1, 3))
    return x.transpose(0, 2, 3, 1) if first else x


def _convert_to_tensor(x: np.ndarray, path: Path, what: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="))))
    except TypeError as error:
        raise ConfigError(f"{path}: {what} are {x.dtype}; give integer labels and uint8 or float32 inputs") from error
