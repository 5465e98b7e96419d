"""Fill a cost table: write the files of layers it lacks, run them interleaved on the device, keep the medians.

The forms of one layer are measured in one run, dense beside factorized, so that what disturbs one disturbs all. The files of a run take
turns, which leaves them as cold in the caches as a network leaves its layers. What a call takes of itself, a microsecond or two, is taken
off.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgecompress.devices.device import Device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.statistics import mad, median, noise
from edgecompress.errors import DeviceError
from edgecompress.planning.latency_tables.table import Key, Wanted, conditions_of, empty, with_layers
from edgecompress.planning.latency_tables.writing import write_layers
from edgecompress.progress import Track, silent
from edgecompress.records import BenchmarkResult, Cost, CostTable, Measuring

LOG = logging.getLogger(__name__)
AT_ONCE: Final = 40  # files in one run
BYTES_AT_ONCE: Final = 100_000_000  # in one run: a small device holds them, and what the runtime packs of them
ATTEMPTS: Final = 3
SMALLEST: Final = Path(__file__).with_name("smallest.tflite")  # Linear(4, 4), as write_layers writes it
LEAST: Final = 0.1  # of a file's latency, that is not the call's
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
    ordered = by_layer(wanted)
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        written = write(ordered, Path(name), track)
        runs = list(runs_of([w for w in ordered if w.key in written], written))
        for run in track(runs, f"measuring layers on {device.url}", len(runs)):
            call, *results = quietly(device, [SMALLEST, *(written[w.key] for w in run)], how, noisy=noisy)
            _check(table, call)
            costs = (cost(result, w.macs, call) for w, result in zip(run, results, strict=True))
            table = with_layers(table, dict(zip((w.key for w in run), costs, strict=True)))
    return table


def quietly(device: Device, files: Sequence[Path], how: Measuring, *, noisy: bool = False) -> tuple[BenchmarkResult, ...]:
    """Measure, again when others kept the device busy.

    Raises:
        DeviceError: They did so each time.
    """
    how = msgspec.structs.replace(how, warmup_s=max(how.warmup_s, LEAST_S / len(files)))
    for _ in range(ATTEMPTS):
        results = measure_latencies(device, files, how)
        busy = [reason for reason in noise(results[0]) if "processors" in reason or "throttled" in reason]
        if noisy or not busy:
            return results
        LOG.info("%s: measured again: %s", device.url, "; ".join(busy))
    raise DeviceError(f"{device.url}: {busy[0]} in each of {ATTEMPTS} runs; a table measured now would be wrong, end what runs there")


def beyond(call: BenchmarkResult, result: BenchmarkResult) -> float:
    """Return the median latency of a file beyond that of a call that computes next to nothing."""
    whole = median(result.latency_ms)
    return max(whole - median(call.latency_ms), LEAST * whole)


def cost(result: BenchmarkResult, macs: int, call: BenchmarkResult | None = None) -> Cost:
    """Return what one file costs, by its median; beyond an empty call, where one is given."""
    middle = median(result.latency_ms)
    ms = middle if call is None else beyond(call, result)
    return Cost(ms=ms, spread=mad(result.latency_ms) / middle if middle else 0.0, macs=macs, measured_at=result.started_at)


def by_layer(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Put the forms of a layer after each other, and the schemes of a form, as the writer likes them."""
    return sorted(wanted, key=lambda w: w.key)


def write(wanted: Sequence[Wanted], folder: Path, track: Track) -> dict[Key, Path]:
    """Write the files; what is refused has none."""
    files = {w.key: folder / f"{i}.tflite" for i, w in enumerate(wanted)}
    write_layers([(w.form, w.scheme, files[w.key]) for w in wanted], track=track)
    return {key: path for key, path in files.items() if path.is_file()}


def runs_of(wanted: Sequence[Wanted], written: Mapping[Key, Path]) -> Iterator[list[Wanted]]:
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
