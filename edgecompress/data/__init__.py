"""Data for training, evaluation and calibration. A data format is a module with the two functions of `Loader`, and one line in LOADERS."""

from pathlib import Path
from typing import Final, Literal, Protocol

from edgecompress.data import arrow, idx, imagefolder, npz, webdataset
from edgecompress.data.images import open_image, preprocess_image
from edgecompress.data.samples import (
    Samples,
    check_finite,
    check_shape,
    count_items,
    describe_dataset,
    fetch_items,
    fetch_pairs,
    fetch_samples,
    remember_function,
)
from edgecompress.data.targets import Targets, check_labels, collate_targets, is_class_index, take_targets
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

__all__ = [
    "LOADERS",
    "Loader",
    "Samples",
    "Targets",
    "check_finite",
    "check_labels",
    "check_shape",
    "collate_targets",
    "count_items",
    "describe_dataset",
    "fetch_items",
    "fetch_pairs",
    "fetch_samples",
    "is_class_index",
    "load_data",
    "open_image",
    "preprocess_image",
    "remember_function",
    "take_targets",
]

Split = Literal["train", "eval"]


class Loader(Protocol):
    """A module that reads one data format."""

    def can_load(self, path: Path) -> bool:
        """Whether `path` looks like this format; formats are asked in the order of LOADERS."""

    def load_split(self, path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
        """Return one split of the data at `path`."""


LOADERS: Final[dict[str, Loader]] = {
    "an .npz": npz,
    "idx files": idx,
    "WebDataset shards": webdataset,
    "a Hugging Face dataset": arrow,
    "an ImageFolder": imagefolder,
}


def load_data(path: Path, split: Split, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return a split of the data at `path`, whatever their format.

    Args:
        path: A file or a folder in one of the formats of LOADERS.
        split: Data without splits are divided: every fifth sample is for "eval", the others for "train".
        preprocessing: Applied to images; None scales them to [0, 1].
        example: Inputs of the model, batch axis included, `(1, c, h, w)` for images; only shapes and dtypes matter.

    Raises:
        ConfigError: `path` does not exist, has an unknown format, or holds data that do not fit the model.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; data are {', '.join(LOADERS)}")
    if path.is_dir() and not any(path.iterdir()):
        raise ConfigError(f"{path}: an empty folder; data are {', '.join(LOADERS)}")
    for loader in LOADERS.values():
        if loader.can_load(path):
            return loader.load_split(path, split, preprocessing=preprocessing, example=example)
    raise ConfigError(f"{path}: not a form of data known here; data are {', '.join(LOADERS)}")
