"""Shards of WebDataset: tar files whose members `KEY.jpg` and `KEY.cls` (or `KEY.json`) make a sample; images are read in place."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from edgecompress.data.images import check_preprocessing, open_image, preprocess_image, read_image_shape
from edgecompress.data.samples import Samples
from edgecompress.data.split import HELD_OUT, read_split_name, select_split
from edgecompress.errors import ConfigError, first_line
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

IMAGES: Final = {"jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "bmp", "gif", "tif", "tiff"}
LABELS: Final = ("cls", "cls.txt", "json")
LABEL_KEYS: Final = ("label", "cls", "class", "class_id", "target")  # of a sample's .json
MAX_LABEL_BYTES: Final = 1_000_000  # a label is a number or a name


class _Member(NamedTuple):
    """Place of a file within its shard, in bytes."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


class TarImages:
    """Images within shards as a column of inputs; each is read when its sample is."""

    def __init__(self, members: Sequence[_Member], preprocessing: Preprocessing | None, input_shape: tuple[int, ...]) -> None:
        check_preprocessing(preprocessing, input_shape)
        self.members = tuple(members)
        self.preprocessing = preprocessing
        self.input_shape = input_shape

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Tensor:
        member = self.members[index]
        image = open_image(io.BytesIO(member.read()), subject=str(member))
        return preprocess_image(image, self.preprocessing, self.input_shape, subject=str(member))


def can_load(path: Path) -> bool:
    return path.suffix == ".tar" if path.is_file() else bool(_list_shards(path))


def load_split(path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return the images of a split's shards; labels are class indices, or names, which are numbered in the order of the alphabet.

    A shard belongs to the split that its name or its folder's name tells; shards that tell none are divided by samples.

    Raises:
        ConfigError: No shard of the split, a shard that cannot be read, no images, or images without labels among others with them.
    """
    input_shape = read_image_shape(example, path)
    shards = [path] if path.is_file() else _list_shards(path)
    named = {name: _choose_shards(shards, name) for name in ("train", "eval")}
    if named["eval"] and not named[split]:
        raise ConfigError(f"{path}: no shards of the split {split}; name them train-… and val-…")
    divided = not named["eval"]
    chosen = (named["train"] or shards) if divided else named[split]
    known = chosen if divided else named["train"] or chosen  # the training shards name the classes
    pairs = list(_pair(chosen))
    if not pairs:
        raise ConfigError(f"{chosen[0]}: no images in it; a sample is KEY.jpg and KEY.cls")
    texts = {str(label) for _, label in (pairs if known is chosen else _pair(known)) if isinstance(label, str)}
    pairs = select_split(pairs, split, str(path)) if divided else pairs
    classes = tuple(sorted(texts))
    source = f"{path}: {len(pairs)} images of {len(chosen)} shards{f', {HELD_OUT[split]}' if divided else ''}"
    inputs = TarImages([member for member, _ in pairs], preprocessing, input_shape)
    return Samples(inputs, _number(pairs, classes), source=source, class_names=classes)


def _list_shards(folder: Path) -> list[Path]:
    """Return the tar files in a folder and in those within it; () where one of those has none: an archive often lies beside its images."""
    within = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    shards = {place: [shard for shard in place.glob("*.tar") if not shard.name.startswith(".")] for place in (folder, *within)}
    return sorted(shard for found in shards.values() for shard in found) if all(shards[place] for place in within) else []


def _choose_shards(shards: Sequence[Path], split: str) -> list[Path]:
    """Return the shards of the best name of a split: those of `test` where there are some of `val` too."""
    ranks = {shard: found[1] for shard in shards if (found := _read_split(shard)) is not None and found[0] == split}
    return [shard for shard, rank in ranks.items() if rank == min(ranks.values())]


def _read_split(shard: Path) -> tuple[str, int] | None:
    """Return the split that the name of a shard (`imagenet-train-000001.tar`), or of its folder, tells, and the rank of that name."""
    names = (*shard.stem.replace("_", "-").split("-"), shard.parent.name)
    return next((found for name in names if (found := read_split_name(name)) is not None), None)


def _pair(shards: Sequence[Path]) -> Iterator[tuple[_Member, int | str | None]]:
    """Yield each image of some shards with its label; None where its sample has none."""
    for shard in shards:
        for key, parts in _group(shard).items():
            image = next((member for kind, member in parts.items() if kind.rpartition(".")[2] in IMAGES), None)
            label = next((_read_label(parts[kind], kind, key) for kind in LABELS if kind in parts), None)
            if image is not None:
                yield image, label


def _group(shard: Path) -> dict[str, dict[str, _Member]]:
    """Return the members of a shard by the key of their sample and by their kind, which is all that follows the key's first dot."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, dot, kind = name.partition(".")
                if member.isfile() and key and dot:
                    where = _Member(shard, member.name, member.offset_data, member.size)
                    samples.setdefault(f"{folder}/{key}", {})[kind.lower()] = where
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{shard}: not a readable tar file ({first_line(error)}); copy it again, without compression") from error
    return samples


def _read_label(member: _Member, kind: str, key: str) -> int | str | None:
    """Return the label of a sample: a class index, the name of a class, or None where its .json has none."""
    try:
        text = member.read().decode() if member.size <= MAX_LABEL_BYTES else ""
        value = json.loads(text) if kind == "json" else text.strip()
    except ValueError as error:
        raise ConfigError(f"{member}: no readable label; write a class index or the name of a class") from error
    if kind == "json":
        value = next((value[name] for name in LABEL_KEYS if name in value), None) if isinstance(value, dict) else value
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{member}: no class index and no name; write one of them for {key}")
    return int(value) if value.lstrip("-").isdecimal() else value


def _number(pairs: Sequence[tuple[_Member, int | str | None]], classes: tuple[str, ...]) -> Tensor | None:
    """Return the labels `(n,)` as indices; None where no sample has one."""
    labels = [label for _, label in pairs]
    if all(label is None for label in labels):
        return None
    wrong = next((member for member, label in pairs if label is None or isinstance(label, str) != bool(classes)), None)
    if wrong is not None:
        raise ConfigError(f"{wrong}: its sample has no label like those of the others; give every image a class index, or every one a name")
    if unknown := next((member for member, label in pairs if isinstance(label, str) and label not in classes), None):
        raise ConfigError(f"{unknown}: its class is in no training shard; class indices come from the training shards")
    return torch.tensor([classes.index(label) if isinstance(label, str) else label for label in labels])
