"""A dataset that knows its source, and functions that fetch and check samples of any dataset."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch

FORMS: Final = "(input, label), ((input_0, input_1), label), or the same without the label as input, ((input_0, input_1),)"


class Column(Protocol):
    """All samples of one input: a tensor in memory, or an object that reads and preprocesses a sample when indexed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Samples(Dataset[Any]):
    """Pairs `(input, label)`, or inputs alone where there are no labels; several inputs are a tuple.

    Attributes:
        inputs: One column, or a tuple of columns, as given; `columns` is always a tuple.
        source: Origin and number of the samples, for reports.
        labels: `(n,)` int64, or None.
        class_names: Names in the order of the labels; empty when unknown.
        transform: Applied to the input, or tuple of inputs, of each sample when the sample is read, e.g. an augmentation; random numbers
            come from torch's global generator.
    """

    def __init__(
        self,
        inputs: Column | tuple[Column, ...],
        labels: Tensor | None,
        *,
        source: str,
        class_names: tuple[str, ...] = (),
        transform: Callable[[Any], Any] | None = None,
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

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor | Batch, int] | tuple[Batch] | Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        read = tuple(column[index] for column in self.columns)
        x = read[0] if len(read) == 1 else read
        if self.transform is not None:
            x = self.transform(x)
        if self.labels is not None:
            return x, int(self.labels[index])
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
        dataset: Map-style; its items are `(input, label)`, `((input_0, input_1), label)`, or without labels `input`, `(input,)`,
            `((input_0, input_1),)`.
        which: Indices of samples, or a number of samples (at most all of them); None for all.
        seed: Draw a number of samples at random, the same for the same seed; None takes the first ones. The order is random even where all
            samples are drawn, so that the first of them stand for the rest: datasets are often sorted by class.
        example: Inputs of the model, batch axis included, which give number, shapes and dtypes; None goes by the first sample.
        labelled: False ignores labels, whatever they are, and returns None.
        classes: Number of classes; labels must be below.

    Raises:
        ConfigError: The dataset is empty or not map-style, an item has none of the forms above, inputs do not fit the model or are not
            finite, or a label is no class.
    """
    source = describe_dataset(dataset)
    indices = _choose_indices(dataset, which, seed, source)
    samples: list[Batch] = []
    labels: list[Any] = []
    for index in indices:
        inputs, label = split_item(dataset[index], source)
        example = tuple(x[None] for x in inputs) if example is None else example
        samples.append(_convert_to_example(inputs, example, f"{source}: sample {index}"))
        if labelled and label is not None:
            labels.append(label)
    columns = tuple(torch.stack(column) for column in zip(*samples, strict=True))  # each (n, …)
    for i, column in enumerate(columns):
        check_finite(column, source if len(columns) == 1 else f"{source}: input {i}", indices)
    if not labels:
        return columns, None
    if len(labels) != len(samples):
        raise ConfigError(f"{source}: {len(samples)} inputs but {len(labels)} labels; label every sample or none")
    return columns, check_labels(_stack_labels(labels, source), source, classes=classes)


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


def check_labels(labels: Tensor, subject: str, *, classes: int | None = None) -> Tensor:
    """Return labels as int64 `(n,)`.

    Raises:
        ConfigError: Labels are not integers, not one per sample, negative, or not below `classes`.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(f"{subject}: labels are {str(labels.dtype).removeprefix('torch.')}; give integer class indices")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # (n,)
    if labels.ndim != 1:
        raise ConfigError(f"{subject}: labels have shape {tuple(labels.shape)}; give one class index a sample (argmax of one-hot)")
    labels = labels.long()
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        limit = f"0 … {classes - 1}" if classes is not None else "0 or more"
        raise ConfigError(f"{subject}: labels from {low} to {high}; class indices must be {limit}")
    return labels


def _choose_indices(dataset: Any, which: int | Sequence[int] | None, seed: int | None, source: str) -> list[int]:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigError(f"{source}: has no length and no index; give a map-style torch Dataset")
    total = len(dataset)
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
    """Return inputs and label of an item of a dataset, without a batch axis; None for the label of an item without one.

    Raises:
        ConfigError: The item has none of the forms that `fetch_samples` lists.
    """
    given, label = item, None
    if isinstance(item, tuple | list):
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


def _stack_labels(labels: list[Any], source: str) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(label) for label in labels])  # (n,) when each is one number
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{source}: labels of type {type(labels[0]).__name__} ({error}); give integer class indices") from error
