"""Channels of a tensor that have ranges of their own, e.g. boxes in pixels beside probabilities."""

import math
from typing import Final

import torch
from torch import Tensor

MIN_CHANNEL_VALUES: Final = 8  # of fewer values some are equal by chance
MIN_CHANNEL_SPREAD: Final = 0.05  # 8 bits tell 13 values apart in it, so that no rounding makes such a channel constant
MIN_RANGE_RATIO: Final = 4.0  # a channel with a quarter of the range that others have keeps two bits less of 8
POSITIONS_RATIO: Final = 8  # of lengths: 100 cells of 4 coordinates, 8,400 cells of 85 numbers, 16,000 moments of one wave


def choose_channel_axis(tensor: Tensor) -> int | None:
    """Return the axis, 1 or the last, along which ranges differ most; None where the ranges of channels are alike.

    Along a last axis of pixels or time ranges differ as well, but gradually; so a step between two neighbours is asked for there. Of an
    output with two axes, one that is many times as long as the other holds positions: boxes in pixels differ from cell to cell.

    Args:
        tensor: `(n, …)`.
    """
    if tensor.numel() == 0:
        return None
    ratios = {}
    for axis in dict.fromkeys((1, tensor.ndim - 1)):
        if 0 < axis < tensor.ndim and tensor.shape[axis] > 1 and not _holds_positions(tensor, axis):
            scales = channel_scales(tensor.detach().float(), axis, centred=False).flatten()
            present = scales[scales > 0]
            ratio = float(present.max() / present.min()) if len(present) > 1 else 1.0
            steps = (present[1:] / present[:-1]).log().abs()
            if ratio >= MIN_RANGE_RATIO and (axis == 1 or float(steps.max()) >= math.log(MIN_RANGE_RATIO)):
                ratios[axis] = ratio
    return max(ratios, key=lambda each: ratios[each], default=None)


def usual_channel_axis(tensor: Tensor) -> int | None:
    """Return the axis of the channels where their ranges do not show it: 1, or the last one where 1 holds positions; None for none.

    Args:
        tensor: `(n, …)`.
    """
    axis = 2 if tensor.ndim == 3 and _holds_positions(tensor, 1) else 1
    return axis if tensor.ndim > 1 and tensor.shape[axis] > 1 else None


def _holds_positions(tensor: Tensor, axis: int) -> bool:
    return tensor.ndim == 3 and tensor.shape[axis] > POSITIONS_RATIO * tensor.shape[3 - axis]


def channel_scales(tensor: Tensor, axis: int | None, *, centred: bool = True) -> Tensor:
    """Return the standard deviation of each channel, or with `centred=False` its root mean square.

    The result broadcasts against `tensor`: it has size 1 along every axis but `axis`.
    """
    others = tuple(a for a in range(tensor.ndim) if a != axis)
    centre = tensor.mean(others, keepdim=True) if centred else torch.zeros((), dtype=tensor.dtype)
    return (tensor - centre).square().mean(others, keepdim=True).sqrt()


def find_constant_channel(output: Tensor, reference: Tensor, axis: int) -> int | None:
    """Return the first channel that is constant in `output` though it varies in `reference`; None for none, and for integers.

    A channel varies where its standard deviation is MIN_CHANNEL_SPREAD of the range of the whole tensor or more: one sample that stands out
    is not enough.
    """
    if not reference.is_floating_point() or not -reference.ndim <= axis < reference.ndim or reference.ndim < 2:
        return None
    found, wanted = (y.detach().double().movedim(axis, 0).flatten(1) for y in (output, reference))
    if wanted.shape[1] < MIN_CHANNEL_VALUES:
        return None
    spread = float(wanted.max() - wanted.min())
    lost = (found.amax(1) == found.amin(1)) & (wanted.std(1, correction=0) > MIN_CHANNEL_SPREAD * spread)
    return int(lost.nonzero()[0]) if bool(lost.any()) else None
