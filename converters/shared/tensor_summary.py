"""Summaries of tensors for the inspection of files of every format: layout, peak memory, quantization."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from edgecompress.records import QuantizedTensors

IMAGE_AXES: Final = 4
COLORS: Final = (1, 3, 4)
BY_LIFETIMES: Final = "the tensors alive at once in the file's order, at most; an arena needs at least this"


def layout_of(shape: Sequence[int]) -> str:
    """Return the layout of an image by its number of channels, "" where both layouts are possible."""
    if len(shape) != IMAGE_AXES or (shape[1] in COLORS) == (shape[3] in COLORS):
        return ""
    return "NHWC" if shape[3] in COLORS else "NCHW"


def peak_bytes(
    steps: Iterable[tuple[Sequence[int | str], Sequence[int | str]]],
    sizes: Mapping[int | str, int],
    taken: Sequence[int | str],
    given: Sequence[int | str],
) -> int:
    """Return the largest sum of bytes of tensors that are alive at once.

    Args:
        steps: The tensors that each op reads and writes, in order.
        sizes: Bytes of each tensor that is no constant; other tensors are left out.
        taken, given: The network's inputs, alive from the start to their last use, and its outputs, alive to the end.
    """
    steps = list(steps)
    last = {t: i for i, (reads, makes) in enumerate(steps) for t in (*reads, *makes)} | dict.fromkeys(given, len(steps))
    alive = {t: sizes[t] for t in taken if t in sizes}
    most = sum(alive.values())
    for i, (_, makes) in enumerate(steps):
        alive |= {t: sizes[t] for t in makes if t in sizes}
        most = max(most, sum(alive.values()))
        alive = {t: size for t, size in alive.items() if last.get(t, -1) > i}
    return most


def summarize_quantized(quantized: Iterable[tuple[str, bool, Sequence[float]]]) -> tuple[QuantizedTensors, ...]:
    """Count quantized tensors by type; each is given as (dtype, whether it is a constant, its scales)."""
    groups: dict[tuple[str, bool], list[Sequence[float]]] = {}
    for dtype, constant, scales in quantized:
        groups.setdefault((dtype, constant), []).append(scales)
    return tuple(
        QuantizedTensors(
            dtype=dtype,
            constant=constant,
            per_tensor=sum(len(scales) == 1 for scales in members),
            per_channel=sum(len(scales) > 1 for scales in members),
            smallest_scale=min(min(scales) for scales in members),
            largest_scale=max(max(scales) for scales in members),
        )
        for (dtype, constant), members in sorted(groups.items())
    )
