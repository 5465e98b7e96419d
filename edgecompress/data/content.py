"""Digest what a dataset holds, so that no result of other data is taken for one of these."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from edgecompress.data.samples import count_items

SAMPLED_ITEMS: Final = 64  # enough that an edit of a set as a whole (other labels, another scaling) shows, few enough to read in no time
REPEATED_ITEMS: Final = 16  # read a second time: an augmentation that changes one item in three is missed once in 700 times
MAX_BYTES: Final = 64_000_000  # of all items that are read; fewer of them are where they are large
MAX_FILES: Final = 20_000  # files to ask for their size and time; evenly many of more
SEED: Final = 0


class _Part(NamedTuple):
    """Hash and shape of the inputs or of the target of an item, and its bytes."""

    content: str
    shape: str
    size: int


def digest_dataset(dataset: Any, *, with_inputs: bool = True) -> str:
    """Return a hash of the length of a dataset, of the items in a fixed random sample of it, of all its labels, and of its files' times.

    Items are read twice. Where the reads differ, as under an augmentation with random numbers of its own, their shape stands for them.
    Random numbers from the global generators of torch, numpy and Python are the same in every call, and the generators' states stay as
    they were.

    Args:
        with_inputs: False leaves out the inputs, whose last bits may differ between computers, and the times of files.
    """
    if dataset is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return digest_value(type(dataset).__name__)
    with fixed_random_numbers():
        n = count_items(dataset)
        indices = _sample_indices(n)
        size = sum(part.size for index in indices[:1] for part in _digest_item(dataset, index, with_inputs))
        indices = indices[: max(2, MAX_BYTES // max(1, size))]
        first = [_digest_item(dataset, index, with_inputs) for index in indices]
        again = [_digest_item(dataset, index, with_inputs) for index in indices[:REPEATED_ITEMS]]
        if again != first[:REPEATED_ITEMS]:
            again += [_digest_item(dataset, index, with_inputs) for index in indices[REPEATED_ITEMS:]]
            first = [tuple(map(_keep_what_repeats, *reads)) for reads in zip(first, again, strict=True)]
    labels = [digest_value(found) for name in ("labels", "targets") if _count(found := getattr(dataset, name, None)) == n]
    return digest_value((n, first, labels, list(_stamp_listed_files(dataset)) if with_inputs else []))


def _keep_what_repeats(first: _Part, again: _Part) -> _Part:
    return first if first == again else _Part("", first.shape, 0)


@contextmanager
def fixed_random_numbers() -> Iterator[None]:
    """Seed the global random generators for the block, and give them back their state after it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed_generators()
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _seed_generators() -> None:
    torch.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)


def _sample_indices(n: int) -> list[int]:
    """Return the first, the last, and others at random; of a large item only the first of these are read."""
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[:SAMPLED_ITEMS].tolist()
    return list(dict.fromkeys([0, n - 1, *drawn]))[:SAMPLED_ITEMS] if n else []


def _digest_item(dataset: Any, index: int, with_inputs: bool) -> tuple[_Part, ...]:
    """Return inputs and target of an item, each as a hash; the class of the error where it cannot be read, which its step will explain."""
    _seed_generators()
    try:
        item = dataset[index]
    except (Exception, SystemExit) as error:  # the user's code
        return (_make_part(type(error).__name__),)
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    return tuple(_make_part(part) for part in (parts if with_inputs else parts[1:]))


def _make_part(value: Any) -> _Part:
    return _Part(digest_value(value), repr(_shape_of(value)), sum(x.nbytes for x in _arrays(value)))


def _count(value: Any) -> int:
    """Return the number of entries of a column of labels; −1 for anything else."""
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else -1
    return len(value) if isinstance(value, list | tuple) else -1


def _stamp_listed_files(dataset: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, bytes and time of change of the files that a dataset names: those of an image folder, or of torchvision's."""
    paths: list[str | Path] = []
    for part in _parts_of(dataset):
        paths += [path for column in getattr(part, "columns", ()) for path in getattr(column, "paths", ())]
        listed = getattr(part, "samples", ())
        if isinstance(listed, list | tuple):
            paths += [entry[0] for entry in listed if isinstance(entry, tuple) and entry and isinstance(entry[0], str | Path)]
    for path in paths[:: -(-len(paths) // MAX_FILES) or 1]:
        if (file := Path(path)).is_file():
            status = file.stat()
            yield file.name, status.st_size, status.st_mtime_ns


def _parts_of(dataset: Any) -> Iterator[Any]:
    """Yield a dataset and those that torch's `Subset` and `ConcatDataset` wrap."""
    yield dataset
    if isinstance(dataset, Subset):
        yield from _parts_of(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _parts_of(part)


def digest_value(value: Any) -> str:
    """Return a hash of a value of any structure, with the content of its tensors and arrays."""
    digest = blake2b(digest_size=16)
    for part in _encode(value):
        digest.update(part)
    return digest.hexdigest()


def _encode(value: Any) -> Iterator[bytes]:
    """Yield the bytes of a value of any structure, each part preceded by its type and size so that no two values give the same."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
        if value.layout == torch.strided and not value.is_quantized and value.numel():
            dense = value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)  # a stride of 0 stays in contiguous()
            yield dense.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype} {value.shape};".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        yield f"dict {len(value)};".encode()
        for key, entry in value.items():
            yield from _encode(key)
            yield from _encode(entry)
    elif isinstance(value, list | tuple):
        yield f"list {len(value)};".encode()
        for entry in value:
            yield from _encode(entry)
    elif value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        text = repr(value)
        yield f"{type(value).__name__} {len(text)};{text}".encode()
    else:
        pixels = getattr(value, "tobytes", None)  # an image of Pillow
        yield type(value).__name__.encode() + (pixels() if callable(pixels) else b"")


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return (str(value.dtype), tuple(value.shape))
    if isinstance(value, Mapping):
        return {str(key): _shape_of(entry) for key, entry in value.items()}
    return [_shape_of(entry) for entry in value] if isinstance(value, list | tuple) else type(value).__name__


def _arrays(value: Any) -> Iterator[Tensor | np.ndarray]:
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _arrays(entry)
