"""A set of samples that knows where it came from, and how to take a batch out of any set."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgecompress.errors import ConfigError


class Inputs(Protocol):
    """What a loader keeps: a tensor in memory, or something that reads and preprocesses one sample when asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Samples(Dataset[Any]):
    """Pairs `(input, label)`, or inputs alone where there are no labels.

    Attributes:
        source: Where they came from and how many, for reports.
        labels: `(n,)` int64, or None.
        class_names: In the order of the labels; empty when unknown.
        transform: Applied to each input as it is read, e.g. an augmentation; draws from torch's global generator.
    """

    def __init__(
        self,
        inputs: Inputs,
        labels: Tensor | None,
        *,
        source: str,
        class_names: tuple[str, ...] = (),
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if labels is not None and len(inputs) != len(labels):
            raise ConfigError(f"{source}: {len(inputs)} inputs but {len(labels)} labels; give one label an input")
        self.inputs = inputs
        self.labels = labels
        self.source = source
        self.class_names = class_names
        self.transform = transform

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        x = self.inputs[index]
        if self.transform is not None:
            x = self.transform(x)
        return x if self.labels is None else (x, int(self.labels[index]))


def fetch(
    dataset: Dataset[Any],
    which: int | Sequence[int] | None = None,
    *,
    seed: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return inputs `(n, …)` and labels `(n,)`, or None for labels where the set has none.

    Args:
        dataset: Map-style; yields `(input, label)` or just `input`.
        which: Indices; or how many, at most all of them; None for all.
        seed: With a number of samples: draw them at random, the same for the same seed. None takes the first ones.
        input_shape: What each input must look like, without the batch axis.
        classes: Labels must be below it.

    Raises:
        ConfigError: The set is empty or no map-style set, an item is no tensor, shapes differ, an input is not finite, or a label is
            no class.
    """
    source = describe(dataset)
    indices = _indices(dataset, which, seed, source)
    inputs: list[Tensor] = []
    labels: list[Any] = []
    for index in indices:
        x, label = _split(dataset[index], source)
        input_shape = tuple(x.shape) if input_shape is None else input_shape
        check_shape(x.shape, input_shape, f"{source}: sample {index}")
        inputs.append(x)
        if label is not None:
            labels.append(label)
    stacked = torch.stack(inputs)  # (n, …)
    check_finite(stacked, source)
    if not labels:
        return stacked, None
    if len(labels) != len(inputs):
        raise ConfigError(f"{source}: {len(inputs)} inputs but {len(labels)} labels; label every sample or none")
    return stacked, check_labels(_labels(labels, source), source, classes=classes)


def describe(dataset: Dataset[Any]) -> str:
    """Return where a set came from, as far as it tells."""
    known = getattr(dataset, "source", "")
    return known if isinstance(known, str) and known else type(dataset).__name__


def check_shape(shape: Sequence[int], input_shape: Sequence[int], subject: str) -> None:
    """Refuse a sample that is not what the model takes.

    Raises:
        ConfigError: The shapes differ.
    """
    if tuple(shape) != tuple(input_shape):
        raise ConfigError(
            f"{subject}: its shape is {tuple(shape)}, the model's input is {tuple(input_shape)}; an artifact has one static shape, "
            "so resize the samples, or give preprocessing() with resize and crop"
        )


def check_finite(inputs: Tensor, subject: str) -> None:
    """Refuse NaN and infinity, which would silently spoil calibration ranges and losses.

    Raises:
        ConfigError: Names the first bad sample.
    """
    if inputs.is_floating_point() and not math.isfinite(float(inputs.sum())):  # one pass; a sum may overflow, so look closer
        bad = ~torch.isfinite(inputs).flatten(1).all(1)
        if bad.any():
            raise ConfigError(
                f"{subject}: {int(bad.sum())} samples hold NaN or infinity, first {int(bad.nonzero()[0])}; remove or mend them"
            )


def check_labels(labels: Tensor, subject: str, *, classes: int | None = None) -> Tensor:
    """Return labels as int64 `(n,)`.

    Raises:
        ConfigError: Not integers, not one a sample, negative, or not below `classes`.
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


def _indices(dataset: Any, which: int | Sequence[int] | None, seed: int | None, source: str) -> list[int]:
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
    if seed is None or n == total:
        return list(range(n))
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n].tolist()


def _split(item: Any, source: str) -> tuple[Tensor, Any]:
    """Return input and label of what a dataset yields; the label is None where there is none."""
    x, label = item, None
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise ConfigError(f"{source}: yields {len(item)} values a sample; yield (input, label) or input")
        x, label = item[0], item[1] if len(item) == 2 else None
    if not isinstance(x, Tensor):
        raise ConfigError(f"{source}: yields an input of type {type(x).__name__}; yield a tensor")
    return x, label


def _labels(labels: list[Any], source: str) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(label) for label in labels])  # (n,) when each is one number
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{source}: labels of type {type(labels[0]).__name__} ({error}); give integer class indices") from error
