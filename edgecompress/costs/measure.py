"""Fill a cost table: write the files of layers it lacks, run them interleaved on the device, keep the medians.

The forms of one layer are measured in one run, dense beside factorized, so that what disturbs one disturbs all. The files of a run take
turns, which leaves them as cold in the caches as a network leaves its layers.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgecompress.costs.table import Key, Wanted, conditions_of, empty, with_layers
from edgecompress.costs.writing import write_layers
from edgecompress.devices.base import Device
from edgecompress.devices.runner import measure
from edgecompress.errors import DeviceError
from edgecompress.progress import Track, silent
from edgecompress.records import BenchmarkResult, Cost, CostTable, LayerForm, Measuring
from edgecompress.statistics import mad, median, noise

LOG = logging.getLogger(__name__)
AT_ONCE: Final = 40  # files in one run
BYTES_AT_ONCE: Final = 100_000_000  # in one run: a small device holds them, and what the runtime packs of them
ATTEMPTS: Final = 3
UNCHANGED: Final = 0.9  # of what layers take, a reduced network that keeps more tells nothing
LEAST_S: Final = 0.5  # of a run, so that what others take of the processors shows


def fill(
    device: Device, table: CostTable, wanted: Sequence[Wanted], how: Measuring, *, noisy: bool = False, track: Track = silent
) -> CostTable:
    """Return the table with the costs of what is wanted, in place of those it has.

    Forms that no file can be written for are left out and logged.

    Args:
        noisy: Take what a busy device measures, too.

    Raises:
        DeviceError: The device failed, runs another runtime than the table's, or was too busy to measure on.
        ToolchainError: The writer of files failed.
    """
    ordered = _by_layer(wanted)
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        written = _write(ordered, Path(name), track)
        runs = list(_runs([w for w in ordered if w.key in written], written))
        for run in track(runs, f"measuring layers on {device.url}", len(runs)):
            results = quietly(device, [written[w.key] for w in run], how, noisy=noisy)
            _check(table, results[0])
            table = with_layers(table, {w.key: cost(result, w.macs) for w, result in zip(run, results, strict=True)})
    return table


def quietly(device: Device, files: Sequence[Path], how: Measuring, *, noisy: bool = False) -> tuple[BenchmarkResult, ...]:
    """Measure, again when others kept the device busy.

    Raises:
        DeviceError: They did so each time.
    """
    how = msgspec.structs.replace(how, warmup_s=max(how.warmup_s, LEAST_S / len(files)))
    for _ in range(ATTEMPTS):
        results = measure(device, files, how)
        busy = [reason for reason in noise(results[0]) if "processors" in reason or "throttled" in reason]
        if noisy or not busy:
            return results
        LOG.info("%s: measured again: %s", device.url, "; ".join(busy))
    raise DeviceError(f"{device.url}: {busy[0]} in each of {ATTEMPTS} runs; a table measured now would be wrong, end what runs there")


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

    Layers alone take longer than in their network, where what they read is still in the caches, so neither sum can be had from the other.
    With D and F the sums of the layers' latencies alone, dense and reduced, and W and V those of the two networks: W = r + s D and
    V = r + s F, so s D / W = (1 - V / W) / (1 - F / D). All are measured in turns, since a machine's speed drifts by more than r.

    Args:
        wholes: Files of the dense network and of the reduced one.
        layers: Each dense and as it is in the reduced network, and how often it is called.
    """
    wanted = {w.key: w for pair in layers for form in pair[:2] for w in [Wanted(form, scheme, 0)]}
    alone: dict[Key, float] = {}
    shares = []
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        written = _write(_by_layer(list(wanted.values())), Path(name), silent)
        for run in _runs([w for w in _by_layer(list(wanted.values())) if w.key in written], written):
            whole, other, *results = (
                median(result.latency_ms) for result in quietly(device, [*wholes, *(written[w.key] for w in run)], how, noisy=noisy)
            )
            shares.append(other / whole)
            alone |= {w.key: ms / whole for w, ms in zip(run, results, strict=True)}
    pairs = [(Wanted(dense, scheme, 0).key, Wanted(small, scheme, 0).key, calls) for dense, small, calls in layers]
    measured = [(alone[dense] * calls, alone[small] * calls) for dense, small, calls in pairs if dense in alone and small in alone]
    before, after = (sum(each) for each in zip(*measured, strict=True)) if measured else (0.0, 0.0)
    if after > UNCHANGED * before:
        return min(1.0, before)  # nothing to be learnt from the reduced one
    return min(1.0, max(0.0, (1 - median(shares)) / (1 - after / before)))


def cost(result: BenchmarkResult, macs: int) -> Cost:
    """Return what one file costs, by its median."""
    middle = median(result.latency_ms)
    return Cost(ms=middle, spread=mad(result.latency_ms) / middle if middle else 0.0, macs=macs, measured_at=result.started_at)


def _by_layer(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Put the forms of a layer after each other, and the schemes of a form, as the writer likes them."""
    return sorted(wanted, key=lambda w: w.key)


def _write(wanted: Sequence[Wanted], folder: Path, track: Track) -> dict[Key, Path]:
    """Write the files; what is refused has none."""
    files = {w.key: folder / f"{i}.tflite" for i, w in enumerate(wanted)}
    write_layers([(w.form, w.scheme, files[w.key]) for w in wanted], track=track)
    return {key: path for key, path in files.items() if path.is_file()}


def _runs(wanted: Sequence[Wanted], written: Mapping[Key, Path]) -> Iterator[list[Wanted]]:
    """Part what is to be measured into runs; a layer's forms stay together as far as the limits let them."""
    now: list[Wanted] = []
    size = 0
    for w in wanted:
        more = written[w.key].stat().st_size
        if now and (len(now) >= AT_ONCE or size + more > BYTES_AT_ONCE):
            yield now
            now, size = [], 0
        now.append(w)
        size += more
    if now:
        yield now


def _check(table: CostTable, result: BenchmarkResult) -> None:
    here = conditions_of(result)
    if here != empty(table):
        now, then = f"{here.device}, {here.runtime}", f"{table.device}, {table.runtime}"
        raise DeviceError(f"{result.device.url}: is {now}, and the table was begun on {then}; measure on one device")
