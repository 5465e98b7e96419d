"""Fraction of a network's latency that its layers take, from two networks and their layers measured alone."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgecompress.devices.device import Device
from edgecompress.devices.statistics import median
from edgecompress.planning.latency_tables.measurement import (
    SMALLEST_MODEL,
    measure_undisturbed,
    net_latency_ms,
    sort_by_layer,
    split_runs,
    write_files,
)
from edgecompress.planning.latency_tables.table import CostKey, LatencyQuery
from edgecompress.progress import track_silently
from edgecompress.records import BenchmarkOptions, LayerForm

PRIOR_WEIGHT: Final = 0.4  # weight of layers taking as long in a network as alone: they do within 5%, and latencies are known to 2%


def measure_layer_fraction(
    device: Device,
    networks: tuple[Path, Path],
    layers: Sequence[tuple[LayerForm, LayerForm, float]],
    scheme: str,
    how: BenchmarkOptions,
    *,
    noisy: bool = False,
) -> float:
    """Return the fraction of a dense network's latency that its layers take.

    Layers alone take longer than in their network, where their inputs are still in the caches, so subtraction cannot give the remainder.
    With D and F the sums of the layers' latencies alone, dense and reduced, and W and V those of the two networks, W = r + s D and
    V = r + s F. All are measured in turns, since a machine's speed drifts by more than r.

    Args:
        networks: Files of the dense network and of the reduced one.
        layers: Each layer's form in the dense and in the reduced network, and how often it is called.
    """
    queries = {w.key: w for pair in layers for form in pair[:2] for w in [LatencyQuery(form, scheme, 0)]}
    ordered, alone, ratios = sort_by_layer(list(queries.values())), dict[CostKey, float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        written = write_files(ordered, Path(name), track_silently)
        for run in split_runs([w for w in ordered if w.key in written], written):
            call, *results = measure_undisturbed(device, [SMALLEST_MODEL, *networks, *(written[w.key] for w in run)], how, noisy=noisy)
            dense_ms, reduced_ms, *each = (net_latency_ms(call, result) for result in results)
            ratios.append(reduced_ms / dense_ms)
            alone |= {w.key: ms / dense_ms for w, ms in zip(run, each, strict=True)}
    pairs = [(LatencyQuery(dense, scheme, 0).key, LatencyQuery(small, scheme, 0).key, calls) for dense, small, calls in layers]
    measured = [(alone[dense] * calls, alone[small] * calls) for dense, small, calls in pairs if dense in alone and small in alone]
    if not measured:
        return 0.0
    before, after = (sum(each) for each in zip(*measured, strict=True))
    return solve_layer_fraction(before, after, median(ratios))


def solve_layer_fraction(before: float, after: float, other: float) -> float:
    """Return s D of 1 = r + s D and V = r + s F, by least squares, with r not below 0 and s near 1 as far as noise leaves it open.

    Args:
        before: D, the latency of all dense layers alone, in units of the dense network's.
        after: F, the latency of all reduced layers alone, in the same unit.
        other: V, the latency of the reduced network, in the same unit.
    """
    rows = np.array([[1.0, before], [1.0, after], [0.0, PRIOR_WEIGHT]])
    wanted = np.array([1.0, other, PRIOR_WEIGHT])
    rest, slope = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    if rest < 0:
        rest, slope = 0.0, rows[:, 1] @ wanted / (rows[:, 1] @ rows[:, 1])
    return float(slope * before / (rest + slope * before))
