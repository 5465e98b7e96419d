"""A dataset that knows its source, and functions that fetch and check samples of any dataset."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgecompress.data.targets import Targets, check_labels, collate_targets
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import user_code
from edgecompress.network.batches import Batch

FORMS: Final = "(input, target), ((input_0, input_1), target), or the same without the target as input, ((input_0, input_1),)"
TARGET_KEYS: Final = ("label", "labels", "target", "targets")  # in the items of Hugging Face's datasets, and of many others

_FUNCTIONS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class Column(Protocol):
    """All samples of one input: a tensor in memory, or an object that reads and preprocesses a sample when indexed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Samples(Dataset[Any]):
    """Pairs `(input, label)`, or inputs alone where there are no labels; several inputs are a tuple.

    An integer label is given as an int, a label of another dtype or with axes of its own as a tensor.

    Attributes:
        inputs: One column, or a tuple of columns, as given; `columns` is always a tuple.
        source: Origin and number of the samples, for reports.
        labels: Class indices `(n,)`, other targets `(n, …)`, or None.
        class_names: Names in the order of the labels; empty when unknown.
        transform: Applied to the input, or tuple of inputs, of each sample when the sample is read, e.g. an augmentation; random numbers
            come from torch's global generator.
        notes: How the data were read, where that needs saying.
    """

    def __init__(
        self,
        inputs: Column | tuple[Column, ...],
        labels: Tensor | None,
        *,
        source: str,
        class_names: tuple[str, ...] = (),
        transform: Callable[[Any], Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        columns = inputs if isinstance(inputs, tuple) else (inputs,)
        if len(lengths := {len(column) for column in columns}) != 1:
            raise ConfigError(f"{source}: {' and '.join(map(str, sorted(lengths)))} samples; give every input the same number")
        if labels is not None and len(columns[0]) != len(labels):
            raise ConfigError(f"{source}: {len(columns[0])} inputs but {len(labels)} labels; give one label an input")
        self.inputs = inputs
        self.columns = columns
        self.labels = labels
        self.source = source
        self.class_names = class_names
        self.transform = transform
        self.notes = notes

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor | Batch, int | Tensor] | tuple[Batch] | Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        read = tuple(column[index] for column in self.columns)
        x = read[0] if len(read) == 1 else read
        if self.transform is not None:
            x = self.transform(x)
        if self.labels is not None:
            label = self.labels[index]
            return x, label if label.ndim or label.is_floating_point() else int(label)
        return (x,) if isinstance(x, tuple) else x


def fetch_samples(
    dataset: Dataset[Any],
    which: int | Sequence[int] | None = None,
    *,
    seed: int | None = None,
    example: Batch | None = None,
    labelled: bool = True,
    classes: int | None = None,
) -> tuple[Batch, Tensor | None]:
    """Return inputs, each `(n, …)`, and labels `(n,)` of a dataset; None for labels of a dataset without labels.

    Args:
        dataset, which, seed, example: See `fetch_pairs`.
        labelled: False ignores labels, whatever they are, and returns None.
        classes: Number of classes; labels must be below.

    Raises:
        ConfigError: As `fetch_pairs`, or a label is no class.
    """
    inputs, labels = fetch_pairs(dataset, which, seed=seed, example=example, with_targets=labelled)
    return inputs, None if labels is None else check_labels(labels, describe_dataset(dataset), classes=classes)


def fetch_pairs(
    dataset: Dataset[Any],
    which: int | Sequence[int] | None = None,
    *,
    seed: int | None = None,
    example: Batch | None = None,
    with_targets: bool = True,
) -> tuple[Batch, Targets | None]:
    """Return inputs, each `(n, …)`, and targets of a dataset as `collate_targets` gathers them; None for a dataset without targets.

    Args:
        dataset: Map-style; its items are `(input, target)`, `((input_0, input_1), target)`, or without targets `input`, `(input,)`,
            `((input_0, input_1),)`.
        which: Indices of samples, or a number of samples (at most all of them); None for all.
        seed: Draw a number of samples at random, the same for the same seed; None takes the first ones. The order is random even where all
            samples are drawn, so that the first of them stand for the rest: datasets are often sorted by class.
        example: Inputs of the model, batch axis included, which give number, shapes and dtypes; None goes by the first sample.
        with_targets: False ignores targets, whatever they are, and returns None.

    Raises:
        ConfigError: The dataset is empty or not map-style, an item has none of the forms above, inputs do not fit the model or are not
            finite, or targets do not batch.
    """
    inputs, targets = fetch_items(dataset, choose_indices(dataset, which, seed), example=example, with_targets=with_targets)
    return inputs, collate_targets(targets, describe_dataset(dataset)) if targets else None


def fetch_items(
    dataset: Dataset[Any], indices: Sequence[int], *, example: Batch | None = None, with_targets: bool = True
) -> tuple[Batch, list[Any]]:
    """Return inputs of some samples, each `(n, …)`, and the target of each sample as the dataset gives it; [] for samples without targets.

    Raises:
        ConfigError: As `fetch_pairs`, but for the gathering of targets.
    """
    source = describe_dataset(dataset)
    samples: list[Batch] = []
    targets: list[Any] = []
    for index in indices:
        with user_code(f"sample {index} of {_name_dataset(dataset)}"):
            item = dataset[index]
        inputs, target = split_item(item, source)
        example = tuple(x[None] for x in inputs) if example is None else example
        samples.append(_convert_to_example(inputs, example, f"{source}: sample {index}"))
        if with_targets and target is not None:
            targets.append(target)
    columns = tuple(torch.stack(column) for column in zip(*samples, strict=True))  # each (n, …)
    for i, column in enumerate(columns):
        check_finite(column, source if len(columns) == 1 else f"{source}: input {i}", indices)
    if targets and len(targets) != len(samples):
        raise ConfigError(f"{source}: {len(samples)} inputs but {len(targets)} labels; label every sample or none")
    return columns, targets


def count_items(dataset: Any) -> int:
    """Return the length of a dataset.

    Raises:
        ConfigError: Its `__len__` raised.
    """
    with user_code(f"the length of {_name_dataset(dataset)}"):
        return len(dataset)


def remember_function(dataset: Any, name: str) -> None:
    """Let errors of a dataset's items name the function of the recipe that returned it."""
    with suppress(TypeError):  # an object that has no hash, or no weak references, is named by its class
        _FUNCTIONS[dataset] = f"{name}()"


def _name_dataset(dataset: Any) -> str:
    try:
        return _FUNCTIONS.get(dataset) or describe_dataset(dataset)
    except TypeError:
        return describe_dataset(dataset)


def describe_dataset(dataset: Dataset[Any]) -> str:
    """Return the source of a dataset, or the name of its class where it has no source."""
    known = getattr(dataset, "source", "")
    return known if isinstance(known, str) and known else type(dataset).__name__


def check_shape(shape: Sequence[int], input_shape: Sequence[int], subject: str) -> None:
    """Refuse a sample whose shape is not that of the model's input.

    Raises:
        ConfigError: The shapes differ.
    """
    if tuple(shape) != tuple(input_shape):
        raise ConfigError(
            f"{subject}: its shape is {tuple(shape)}, the model's input is {tuple(input_shape)}; an artifact has one static shape, "
            "so resize the samples, or give preprocessing() with resize and crop"
        )


def check_finite(inputs: Tensor, subject: str, indices: Sequence[int] | None = None) -> None:
    """Refuse NaN and infinity, which would silently ruin calibration ranges and losses.

    Args:
        indices: Numbers of the samples in their dataset, for the message; None counts from 0.

    Raises:
        ConfigError: Names the first bad sample.
    """
    if inputs.is_floating_point() and not math.isfinite(float(inputs.sum())):  # one pass; a finite set may overflow the sum, so look closer
        bad = ~torch.isfinite(inputs).flatten(1).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            first = first if indices is None else indices[first]
            raise ConfigError(f"{subject}: {int(bad.sum())} samples hold NaN or infinity, first {first}; remove or mend them")


def choose_indices(dataset: Any, which: int | Sequence[int] | None, seed: int | None) -> list[int]:
    """Return the indices of the samples that `fetch_pairs` reads.

    Raises:
        ConfigError: The dataset is empty or not map-style, or no samples are asked for.
    """
    source = describe_dataset(dataset)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigError(f"{source}: has no length and no index; give a map-style torch Dataset")
    total = count_items(dataset)
    if total == 0:
        raise ConfigError(f"{source}: holds no samples; give at least one")
    if which is not None and not isinstance(which, int):
        if not len(which):
            raise ConfigError(f"{source}: no samples asked for; ask for at least one")
        return [int(index) for index in which]
    n = total if which is None else min(which, total)
    if n < 1:
        raise ConfigError(f"{source}: {n} samples asked for; ask for at least one")
    if seed is None or which is None:
        return list(range(n))
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n].tolist()


def split_item(item: Any, source: str) -> tuple[Batch, Any]:
    """Return inputs and target of an item of a dataset, without a batch axis; None for the target of an item without one.

    An item may be a dict of one input and a label.

    Raises:
        ConfigError: The item has none of the forms that `fetch_pairs` lists.
    """
    given, label = item, None
    if isinstance(item, Mapping):
        named = {key: value for key, value in item.items() if key not in TARGET_KEYS}
        if len(named) != 1 or len(item) > 2:
            raise ConfigError(
                f"{source}: yields a dict of {', '.join(map(str, item)) or 'nothing'}, whose order tells no inputs; yield {FORMS}"
            )
        given, label = next(iter(named.values())), next((item[key] for key in TARGET_KEYS if key in item), None)
    elif isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise ConfigError(f"{source}: yields {len(item)} values a sample; yield {FORMS}")
        given, label = item[0], item[1] if len(item) == 2 else None
    inputs = tuple(given) if isinstance(given, tuple | list) else (given,)
    for x in inputs:
        if not isinstance(x, Tensor):
            raise ConfigError(f"{source}: yields an input of type {type(x).__name__}; yield a tensor")
    if not inputs:
        raise ConfigError(f"{source}: yields no inputs; yield {FORMS}")
    return inputs, label


def _convert_to_example(inputs: Batch, example: Batch, subject: str) -> Batch:
    """Return one sample in the dtypes of the example, where the conversion loses nothing."""
    if len(inputs) != len(example):
        raise ConfigError(f"{subject}: {len(inputs)} inputs, the model takes {len(example)}; yield {FORMS}")
    for i, (x, wanted) in enumerate(zip(inputs, example, strict=True)):
        named = subject if len(inputs) == 1 else f"{subject}: input {i}"
        check_shape(x.shape, wanted.shape[1:], named)
        if x.is_floating_point() != wanted.is_floating_point():
            found, due = (str(tensor.dtype).removeprefix("torch.") for tensor in (x, wanted))
            raise ConfigError(f"{named}: is {found}, the model takes {due}; convert it where the dataset makes it")
    return tuple(x.to(wanted.dtype) for x, wanted in zip(inputs, example, strict=True))
