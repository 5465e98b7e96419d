"""Checks of the data of a network: each is a pure function of a probe, and a row of the table in `checks`."""

import math
from collections.abc import Iterator
from typing import Final

from torch import Tensor

from edgecompress.network.probe import Fact, Probe, split_remedy

BYTE_RANGE: Final = 255.0
MIN_BYTE_MAXIMUM: Final = 32.0  # whole numbers up to here may be counts or indices
MAX_RANGE_RATIO: Final = 30.0  # two splits of one data set differ by less
MAX_STATISTICS_RATIO: Final = 300.0  # 0 … 255 for 0 … 1 is 65,000 times the power, and one set of photographs for another 3 times


def check_data(p: Probe) -> Iterator[Fact]:
    """Find splits that cannot be read, or whose samples the network does not take."""
    for error in dict.fromkeys(split.error for split in p.data if split.error):
        yield Fact(*split_remedy(error))


def check_range(p: Probe) -> Iterator[Fact]:
    """Find splits whose values differ in size, and pixels that nobody scaled."""
    known = [(split.name, i, _range(x)) for split in p.data for i, x in enumerate(split.inputs) if x.is_floating_point() and x.numel()]
    for name, i, (low, high, whole) in known:
        other, _, (least, most, _) = next(row for row in known if row[1] == i)
        sizes = sorted((max(abs(low), abs(high)), max(abs(least), abs(most))))
        if sizes[1] > MAX_RANGE_RATIO * sizes[0] > 0:
            ranges = f"{other} gives {least:g} … {most:g}, {name} {low:g} … {high:g}"
            yield Fact(f"the data have different ranges: {ranges}", "scale them alike, as the network was trained", "warning")
            return
        if whole and low >= 0 and MIN_BYTE_MAXIMUM <= high <= BYTE_RANGE:
            remedy = "divide them by 255 where the network was trained on 0 … 1"
            yield Fact(f"{name} gives whole numbers from {low:g} to {high:g}, as pixels before scaling", remedy, "warning")
            return


def check_statistics(p: Probe) -> Iterator[Fact]:
    """Find data of another range than the network was trained on, as its first BatchNorm remembers it."""
    name, ratio = p.batchnorm_ratio
    if ratio > MAX_STATISTICS_RATIO or 0 < ratio < 1 / MAX_STATISTICS_RATIO:
        size = f"{ratio:.2g} times the power of those that it was trained on"
        yield Fact(f"the BatchNorm {name} reads values with {size}", "scale the data as in training, e.g. pixels to 0 … 1", "warning")


def check_labels(p: Probe) -> Iterator[Fact]:
    """Find class indices that the output has no class for."""
    for split in p.data:
        labels = split.labels
        if labels is not None and split.classes and len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= split.classes):
            found = f"labels from {int(labels.min())} to {int(labels.max())}, the output has {split.classes} classes"
            yield Fact(f"{split.name}: {found}", f"number the classes from 0 to {split.classes - 1}")
            return


def _range(x: Tensor) -> tuple[float, float, bool]:
    """Return the least and the largest value, and whether all values are whole numbers."""
    low, high = float(x.min()), float(x.max())
    return low, high, math.isfinite(low) and math.isfinite(high) and bool((x == x.round()).all())
