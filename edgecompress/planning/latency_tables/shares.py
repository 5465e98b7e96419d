"""What of a network's latency its layers are, from two networks and their layers alone."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgecompress.devices.device import Device
from edgecompress.devices.statistics import median
from edgecompress.planning.latency_tables.measure import SMALLEST, beyond, by_layer, quietly, runs_of, write
from edgecompress.planning.latency_tables.table import Key, Wanted
from edgecompress.progress import silent
from edgecompress.records import LayerForm, Measuring

TRUST: Final = 0.4  # in layers taking in a network what they take alone: latencies are known to 2%, and they do to 5%


def layers_share(
    device: Device,
    wholes: tuple[Path, Path],
    layers: Sequence[tuple[LayerForm, LayerForm, float]],
    scheme: str,
    how: Measuring,
    *,
    noisy: bool = False,
) -> float:
    """Return which share of a dense network's latency its layers are.

    Layers alone take longer than in their network, where what they read is still in the caches, so the remainder cannot be had by
    subtraction. With D and F the sums of the layers' latencies alone, dense and reduced, and W and V those of the two networks,
    W = r + s D and V = r + s F. All are measured in turns, since a machine's speed drifts by more than r.

    Args:
        wholes: Files of the dense network and of the reduced one.
        layers: Each dense and as it is in the reduced network, and how often it is called.
    """
    wanted = {w.key: w for pair in layers for form in pair[:2] for w in [Wanted(form, scheme, 0)]}
    ordered, alone, shares = by_layer(list(wanted.values())), dict[Key, float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        written = write(ordered, Path(name), silent)
        for run in runs_of([w for w in ordered if w.key in written], written):
            call, *results = quietly(device, [SMALLEST, *wholes, *(written[w.key] for w in run)], how, noisy=noisy)
            whole, other, *each = (beyond(call, result) for result in results)
            shares.append(other / whole)
            alone |= {w.key: ms / whole for w, ms in zip(run, each, strict=True)}
    pairs = [(Wanted(dense, scheme, 0).key, Wanted(small, scheme, 0).key, calls) for dense, small, calls in layers]
    measured = [(alone[dense] * calls, alone[small] * calls) for dense, small, calls in pairs if dense in alone and small in alone]
    if not measured:
        return 0.0
    before, after = (sum(each) for each in zip(*measured, strict=True))
    return share_of(before, after, median(shares))


def share_of(before: float, after: float, other: float) -> float:
    """Return s D of 1 = r + s D and V = r + s F, by least squares, r not below 0, and s near 1 as far as noise leaves it open."""
    rows = np.array([[1.0, before], [1.0, after], [0.0, TRUST]])
    wanted = np.array([1.0, other, TRUST])
    rest, slope = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    if rest < 0:
        rest, slope = 0.0, rows[:, 1] @ wanted / (rows[:, 1] @ rows[:, 1])
    return float(slope * before / (rest + slope * before))
