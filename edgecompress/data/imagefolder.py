"""A folder of images: `train/<class>/*` and `test/<class>/*` (or val, eval, validation), or `<class>/*` alone."""

from pathlib import Path

import torch

from edgecompress.data.images import ImageFiles, read_image_shape
from edgecompress.data.samples import Samples
from edgecompress.data.split import HELD_OUT, select_split
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train": ("train",), "eval": ("test", "val", "eval", "validation")}


def can_load(path: Path) -> bool:
    return path.is_dir()


def load_split(path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return the images of a split; class indices follow the alphabetical order of the class folders.

    Raises:
        ConfigError: No such split, no images, or a class that the training folder does not have.
    """
    input_shape = read_image_shape(example, path)
    folders = {name: [path / choice for choice in choices if (path / choice).is_dir()] for name, choices in SPLITS.items()}
    if not any(folders.values()):
        classes = _list_classes(path)
        files = select_split(_list_files(path, classes), split, str(path))
        return _make_samples(files, classes, f"{path}: {len(files)} images, {HELD_OUT[split]}", preprocessing, input_shape)
    if not folders[split]:
        raise ConfigError(f"{path}: no folder {' or '.join(SPLITS[split])}; make one with a folder a class")
    folder = folders[split][0]
    classes = _list_classes((folders["train"] or folders[split])[0])
    if unknown := sorted(set(_list_classes(folder)) - set(classes)):
        raise ConfigError(f"{folder}: class {unknown[0]} has no training folder; class indices come from {folders['train'][0]}")
    files = _list_files(folder, classes)
    return _make_samples(files, classes, f"{folder}: {len(files)} images", preprocessing, input_shape)


def _make_samples(
    files: list[tuple[Path, int]], classes: tuple[str, ...], source: str, preprocessing: Preprocessing | None, input_shape: tuple[int, ...]
) -> Samples:
    inputs = ImageFiles([file for file, _ in files], preprocessing, input_shape)
    return Samples(inputs, torch.tensor([label for _, label in files]), source=source, class_names=classes)


def _list_classes(folder: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ConfigError(f"{folder}: no class folders; put the images into one folder a class")
    return tuple(names)


def _list_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = [
        (file, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    if not found:
        raise ConfigError(f"{folder}: no images in its class folders; known are {', '.join(sorted(SUFFIXES))}")
    return found
