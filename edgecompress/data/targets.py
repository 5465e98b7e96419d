"""Targets of samples: class indices, masks, boxes, numbers, dicts and tuples of these, gathered from items into batches."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edgecompress.errors import ConfigError

MAX_SHAPES: Final = 4  # in a message; a batch may have a tensor for each sample
Targets = Any  # what the user's metric takes: see `collate_targets`


def advise_shapes(outputs: Any, targets: Targets) -> str:
    """Return the remedy for outputs and targets that a metric or a loss cannot compare, with the shapes of both."""
    return f"make the targets fit the outputs: {_list_shapes(targets)} against {_list_shapes(outputs)}"


def _list_shapes(value: Any) -> str:
    found = [str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in tree_leaves(value)]
    return ", ".join(found[:MAX_SHAPES]) + (", …" if len(found) > MAX_SHAPES else "")


def collate_targets(items: Sequence[Any], subject: str) -> Targets:
    """Return the targets of several samples as one value, of the structure that each of them has.

    Numbers, arrays and lists of numbers become tensors. Tensors of one shape are stacked, `(n, …)`; tensors that differ in size (the boxes
    of an image) stay a list with one tensor a sample. Dicts and tuples are gathered entry by entry. Text, and lists of anything but
    numbers, stay a list with one entry a sample.

    Raises:
        ConfigError: Samples differ in type, in the keys of their dicts, in the length of their tuples or in the number of their axes.
    """
    if any(item is None for item in items):
        raise ConfigError(f"{subject}: some of its targets are None; give every sample a target, or none")
    if all(isinstance(item, list) for item in items):
        return _collate_lists(items)
    values = [_convert_numbers(item, subject) for item in items]
    first = values[0]
    if mixed := [value for value in values if _kind_of(value) != _kind_of(first)]:
        raise ConfigError(f"{subject}: targets do not batch: {_describe(first)}, {_describe(mixed[0])}; give all samples one structure")
    if isinstance(first, Tensor):
        return _stack(values)
    if isinstance(first, Mapping):
        return {key: collate_targets([value[key] for value in values], f"{subject}: {key!r}") for key in first}
    if isinstance(first, tuple):
        columns = [collate_targets(column, f"{subject}: entry {i}") for i, column in enumerate(zip(*values, strict=True))]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    return values


def take_targets(targets: Targets, samples: slice) -> Targets:
    """Return the targets of the samples in a slice: rows of tensors, entries of lists, in dicts and tuples of any depth."""
    if isinstance(targets, Mapping):
        return {key: take_targets(value, samples) for key, value in targets.items()}
    if isinstance(targets, tuple):
        columns = [take_targets(value, samples) for value in targets]
        return type(targets)(*columns) if hasattr(targets, "_fields") else tuple(columns)
    return targets[samples]


def is_class_index(targets: Targets) -> bool:
    """Whether targets are one integer a sample, `(n,)` or `(n, 1)`, so that they may be class indices: the kind of the output decides."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return False
    return targets.ndim == 1 or (targets.ndim == 2 and targets.shape[1] == 1)


def check_labels(labels: Targets, subject: str, *, classes: int | None = None) -> Tensor:
    """Return labels as int64 `(n,)`.

    Raises:
        ConfigError: Labels are not integers, not one per sample, negative, or not below `classes`.
    """
    if not isinstance(labels, Tensor):
        inner = labels[0] if isinstance(labels, list) and labels else labels
        raise ConfigError(f"{subject}: labels of type {type(inner).__name__}; give integer class indices")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(f"{subject}: labels are {str(labels.dtype).removeprefix('torch.')}; give integer class indices")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # (n,)
    if labels.ndim != 1:
        raise ConfigError(f"{subject}: labels have shape {tuple(labels.shape)}; give one class index a sample (argmax of one-hot)")
    indices: Tensor = labels.long()
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        limit = f"0 … {classes - 1}" if classes is not None else "0 or more"
        raise ConfigError(f"{subject}: labels from {low} to {high}; class indices must be {limit}")
    return indices


def _collate_lists(items: Sequence[list[Any]]) -> Targets:
    """Return lists of numbers, of any depth, as tensors; the lists as they are where one of them is no array of numbers."""
    try:
        tensors = [torch.tensor(item) for item in items]
    except (TypeError, ValueError, RuntimeError):  # text, tensors, dicts, or lists of several lengths
        return list(items)
    filled = [x for x in tensors if x.numel()]
    if len({x.ndim for x in filled}) > 1:
        return list(items)
    return _stack([x if x.numel() or not filled else filled[0].new_zeros((0, *filled[0].shape[1:])) for x in tensors])


def _stack(tensors: list[Tensor]) -> Targets:
    return torch.stack(tensors) if len({x.shape for x in tensors}) == 1 else tensors


def _convert_numbers(item: Any, subject: str) -> Any:
    """Return a number or an array as a tensor; a number of Python's as float32 or int64."""
    if isinstance(item, Tensor | Mapping | tuple | str | list):
        return item
    if isinstance(item, bool | int | float):
        return torch.tensor(item)
    if isinstance(item, np.ndarray | np.generic):
        try:
            return torch.from_numpy(np.ascontiguousarray(item).reshape(np.shape(item)))
        except TypeError as error:
            raise ConfigError(f"{subject}: targets are arrays of {item.dtype}; give arrays of numbers") from error
    raise ConfigError(f"{subject}: a target of type {type(item).__name__}; give tensors, numbers, text, or dicts, tuples and lists of them")


def _kind_of(value: Any) -> tuple[object, ...]:
    """Return what two targets must have in common to be gathered."""
    if isinstance(value, Tensor):
        return (Tensor, value.ndim)
    if isinstance(value, Mapping):
        return (dict, *sorted(map(repr, value)))
    if isinstance(value, tuple):
        return (type(value), len(value))
    return (type(value),)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
