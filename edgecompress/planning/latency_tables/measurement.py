"""Measure layers for a cost table: write their files, run them in turns on the device, keep the medians.

The forms of one layer are measured in one run, dense beside factorized, so that a disturbance affects all of them. The files of a run take
turns, which leaves them as cold in the caches as a network leaves its layers. The time of an empty call, a microsecond or two, is
subtracted.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgecompress.devices.device import Device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.statistics import find_noise, mad, median
from edgecompress.errors import DeviceError
from edgecompress.planning.latency_tables.layer_files import write_layers
from edgecompress.planning.latency_tables.table import CostKey, LatencyQuery, add_layers, table_for_result, without_costs
from edgecompress.progress import Track, track_silently
from edgecompress.records import BenchmarkOptions, BenchmarkResult, Cost, CostTable

LOG = logging.getLogger(__name__)
MAX_FILES: Final = 40  # in one run; more would let the machine's speed drift between the turns
MAX_RUN_BYTES: Final = 100_000_000  # a small device holds so many bytes of files, and the runtime's packed copies of them
ATTEMPTS: Final = 3
SMALLEST_MODEL: Final = Path(__file__).with_name("smallest.tflite")  # Linear(4, 4), as write_layers writes it
MIN_NET_FRACTION: Final = 0.1  # of a file's latency remains after subtracting an empty call, which is itself measured with noise
MIN_RUN_S: Final = 0.5  # a shorter run does not show how much of the processors other programs take


def measure_layers(
    device: Device,
    table: CostTable,
    wanted: Sequence[LatencyQuery],
    how: BenchmarkOptions,
    *,
    noisy: bool = False,
    track: Track = track_silently,
) -> CostTable:
    """Return the table with the costs of the wanted forms, which replace those it has.

    Forms that no file can be written for are left out and logged.

    Args:
        noisy: Also accept measurements on a busy device.

    Raises:
        DeviceError: The device failed, runs another runtime than the table's, or was too busy to measure on.
        ToolchainError: The program that writes the files failed.
    """
    ordered = sort_by_layer(wanted)
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        written = write_files(ordered, Path(name), track)
        runs = list(split_runs([w for w in ordered if w.key in written], written))
        for run in track(runs, f"measuring layers on {device.url}", len(runs)):
            call, *results = measure_undisturbed(device, [SMALLEST_MODEL, *(written[w.key] for w in run)], how, noisy=noisy)
            _check_conditions(table, call)
            costs = (cost_of_result(result, w.macs, call) for w, result in zip(run, results, strict=True))
            table = add_layers(table, dict(zip((w.key for w in run), costs, strict=True)))
    return table


def measure_undisturbed(
    device: Device, files: Sequence[Path], how: BenchmarkOptions, *, noisy: bool = False
) -> tuple[BenchmarkResult, ...]:
    """Measure files, and measure them again if other programs kept the device busy.

    Raises:
        DeviceError: The device was busy in every attempt.
    """
    how = msgspec.structs.replace(how, warmup_s=max(how.warmup_s, MIN_RUN_S / len(files)))
    for _ in range(ATTEMPTS):
        results = measure_latencies(device, files, how)
        busy = [reason for reason in find_noise(results[0]) if "processors" in reason or "throttled" in reason]
        if noisy or not busy:
            return results
        LOG.info("%s: measured again: %s", device.url, "; ".join(busy))
    raise DeviceError(
        f"{device.url}: {busy[0]} in each of {ATTEMPTS} runs; a table measured now would be wrong; stop the other programs there"
    )


def net_latency_ms(call: BenchmarkResult, result: BenchmarkResult) -> float:
    """Return the median latency of a file minus that of `call`, a call that computes almost nothing."""
    whole = median(result.latency_ms)
    return max(whole - median(call.latency_ms), MIN_NET_FRACTION * whole)


def cost_of_result(result: BenchmarkResult, macs: int, call: BenchmarkResult | None = None) -> Cost:
    """Return the cost of one file by its median latency, minus that of an empty call if one is given."""
    middle = median(result.latency_ms)
    ms = middle if call is None else net_latency_ms(call, result)
    return Cost(ms=ms, spread=mad(result.latency_ms) / middle if middle else 0.0, macs=macs, measured_at=result.started_at)


def sort_by_layer(wanted: Sequence[LatencyQuery]) -> list[LatencyQuery]:
    """Return the queries with the forms of a layer, and the schemes of a form, next to each other, as the program writes them fastest."""
    return sorted(wanted, key=lambda w: w.key)


def write_files(wanted: Sequence[LatencyQuery], folder: Path, track: Track) -> dict[CostKey, Path]:
    """Write the files and return their paths; forms that the program refused have none."""
    files = {w.key: folder / f"{i}.tflite" for i, w in enumerate(wanted)}
    write_layers([(w.form, w.scheme, files[w.key]) for w in wanted], track=track)
    return {key: path for key, path in files.items() if path.is_file()}


def split_runs(wanted: Sequence[LatencyQuery], written: Mapping[CostKey, Path]) -> Iterator[list[LatencyQuery]]:
    """Split queries into runs; the forms of a layer stay together as far as the limits permit."""
    run: list[LatencyQuery] = []
    size = 0
    for w in wanted:
        more = written[w.key].stat().st_size
        if run and (len(run) >= MAX_FILES or size + more > MAX_RUN_BYTES):
            yield run
            run, size = [], 0
        run.append(w)
        size += more
    if run:
        yield run


def _check_conditions(table: CostTable, result: BenchmarkResult) -> None:
    here = table_for_result(result)
    if here != without_costs(table):
        now, then = f"{here.device}, {here.runtime}", f"{table.device}, {table.runtime}"
        raise DeviceError(f"{result.device.url}: is {now}, and the table was begun on {then}; measure on one device")
