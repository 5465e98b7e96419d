"""A folder of images: `train/<class>/*` and `test/<class>/*` under their usual names, or `<class>/*` alone."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch

from edgecompress.data.image_checks import find_unreadable
from edgecompress.data.images import ImageFiles, read_image_shape
from edgecompress.data.samples import Samples
from edgecompress.data.split import HELD_OUT, SPLITS, read_split_name, select_split
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

SUFFIXES: Final = {
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
MAX_NESTING: Final = 4  # folders around the data, as archives have them
MAX_NAMED: Final = 5


class _Folder(NamedTuple):
    """The images of a split.

    Attributes:
        files: Path and class index of each image.
        classes: Names of the classes in the order of their indices.
        notes: What was left out.
    """

    files: list[tuple[Path, int]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def can_load(path: Path) -> bool:
    return path.is_dir()


def load_split(path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return the images of a split; class indices follow the order of the class folders' names, as text.

    A folder without a held-out set is divided. Images that cannot be read are left out and named in the notes.

    Raises:
        ConfigError: No such split, no images, a class without images, one that the training folder does not have, or many unreadable files.
    """
    input_shape = read_image_shape(example, path)
    root, splits = _find_splits(path)
    if split == "train" and not splits["train"] and splits["eval"]:
        raise ConfigError(f"{root}: no folder train; make one with a folder a class")
    if splits["eval"]:
        train = _list_classes(splits["train"][0]) if splits["train"] else ()
        folder = splits["train"][0] if split == "train" else _choose_held_out(splits["eval"], train)
        found = _list_images(folder, train or _list_classes(folder), complete=split == "train")
        return _make_samples(found, f"{folder}: {len(found.files)} images", preprocessing, input_shape)
    folder = splits["train"][0] if splits["train"] else root
    _refuse_splits_in_classes(folder)
    found = _list_images(folder, _list_classes(folder), complete=True)
    found = found._replace(files=select_split(found.files, split, str(folder)))
    return _make_samples(found, f"{folder}: {len(found.files)} images, {HELD_OUT[split]}", preprocessing, input_shape)


def _make_samples(found: _Folder, source: str, preprocessing: Preprocessing | None, input_shape: tuple[int, ...]) -> Samples:
    inputs = ImageFiles([file for file, _ in found.files], preprocessing, input_shape)
    labels = torch.tensor([label for _, label in found.files])
    return Samples(inputs, labels, source=source, class_names=found.classes, notes=found.notes)


def _find_splits(path: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Return the folder in which the data lie, below folders that hold one folder alone, and its folders of each split, best first.

    Raises:
        ConfigError: The folders of the splits hold no class folders.
    """
    root = _enter(path)
    folders = _list_folders(root)
    named = [(*found, folder) for folder in folders if (found := read_split_name(folder.name)) is not None]
    splits = {name: [_enter(folder) for each, _, folder in sorted(named) if each == name and _list_folders(folder)] for name in SPLITS}
    flat = [
        folder for split, _, folder in named if split == "eval" or len(named) == len(folders)
    ]  # `train` alone may be a class of vehicles
    if flat and not any(splits.values()):
        raise ConfigError(f"{flat[0]}: no class folders; put the images into one folder a class")
    return root, splits


def _enter(folder: Path) -> Path:
    """Return the folder below those that hold nothing but one folder with folders in it; a folder that is named as a split stays."""
    for _ in range(MAX_NESTING):
        inner = _list_folders(folder)
        if len(inner) != 1 or not _list_folders(inner[0]):
            break
        if read_split_name(inner[0].name) is not None and read_split_name(folder.name) is None:
            break
        folder = inner[0]
    return folder


def _list_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _list_classes(folder: Path) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _list_folders(folder))
    if not names:
        raise ConfigError(f"{folder}: no class folders; put the images into one folder a class")
    return names


def _choose_held_out(folders: list[Path], classes: tuple[str, ...]) -> Path:
    """Return the first folder whose classes are all trained, where one is: images to predict often lie in a class `unknown`."""
    return next((folder for folder in folders if set(_list_classes(folder)) <= set(classes)), folders[0])


def _refuse_splits_in_classes(folder: Path) -> None:
    """Refuse `cat/train/*`: taken as images of one class, those held out would be trained on."""
    for entry in _list_folders(folder):
        if inner := [each.name for each in _list_folders(entry) if read_split_name(each.name) is not None]:
            raise ConfigError(
                f"{entry}: a class folder that holds a folder {inner[0]}; move the classes into it: {inner[0]}/{entry.name}/…"
            )


def _list_images(folder: Path, classes: tuple[str, ...], *, complete: bool) -> _Folder:
    """Return the readable images in the class folders of `folder`, at any depth.

    Args:
        complete: Every class must have images, because the folders decide what labels mean.

    Raises:
        ConfigError: No images, a class without images or one that is not in `classes`, or many files that cannot be read.
    """
    images = {name: list(_walk_images(folder / name)) for name in dict.fromkeys((*classes, *_list_classes(folder)))}
    if unknown := [name for name in images if name not in classes and images[name]]:
        raise ConfigError(f"{folder}: class {unknown[0]} has no training folder; class indices come from the training folders")
    if not any(images.values()):
        raise ConfigError(f"{folder}: no images in its class folders; known are {', '.join(sorted(SUFFIXES))}")
    unreadable = find_unreadable([file for name in classes for file in images[name]], folder)
    kept = {name: [file for file in images[name] if file not in unreadable] for name in classes}
    empty = [name for name in classes if not kept[name]]
    if empty and complete:
        rest = f", and {len(empty) - 1} more such classes" if empty[1:] else ""
        raise ConfigError(
            f"{folder / empty[0]}: a class without images{rest}; add images or remove the folder, since every folder is a class"
        )
    notes = [f"no images of {_list_names(empty)} in {folder}, which are not scored"] if empty else []
    if unreadable:
        names = [str(file.relative_to(folder)) for file in unreadable]
        notes.append(f"{len(names)} unreadable images in {folder} were left out: {_list_names(names)}")
    return _Folder([(file, label) for label, name in enumerate(classes) for file in kept[name]], classes, tuple(notes))


def _walk_images(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder in the order of their paths, through links, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files) if real not in seen else ():
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)
        seen.add(real)


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
