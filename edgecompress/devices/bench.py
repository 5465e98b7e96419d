"""Measure the latency of artifacts on a device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgecompress.devices import Device, open_device
from edgecompress.devices.cooling import cool_down
from edgecompress.devices.inventory import apply_entry, resolve_device
from edgecompress.devices.manifests import read_manifest
from edgecompress.devices.runners.execute import check_runner_file, measure_latencies
from edgecompress.devices.statistics import find_noise
from edgecompress.errors import ConfigError
from edgecompress.progress import Track, track_silently
from edgecompress.records import BenchmarkOptions, BenchmarkResult
from edgecompress.records.fields import check_values
from edgecompress.records.measurement import BENCHMARK_DEFAULTS
from edgecompress.targets import SUFFIXES

MAX_COMPARE_LOADINGS: Final = 20  # an interval of 99% gets little narrower with more loadings, each of which costs time
MIN_ROUNDS_PER_LOADING: Final = 3  # the median of a loading needs at least three samples


def check_artifacts(artifacts: Sequence[Path], options: BenchmarkOptions) -> None:
    """Refuse artifacts that cannot be measured, or not be compared, before any device is opened.

    Raises:
        ConfigError: A value out of its range, no artifacts, one that was changed after export, no two of one format to compare, or no such
            runner.
    """
    check_values(options)
    check_runner_file(options.runner)
    if not artifacts:
        raise ConfigError("bench: no artifacts; name files or a run folder with artifacts/")
    for path in artifacts:
        if path.suffix not in SUFFIXES or not path.is_file():
            raise ConfigError(f"{path}: no such artifact; it must be a file whose name ends in {', '.join(SUFFIXES)}")
        read_manifest(path)
    formats = dict.fromkeys(path.suffix for path in artifacts)
    if options.compare and (len(artifacts) < 2 or len(formats) > 1):
        raise ConfigError(f"--compare: {len(artifacts)} artifacts, formats {', '.join(formats)}; give at least two of one format")


def bench_on_device(device: Device, artifacts: Sequence[Path], options: BenchmarkOptions, *notes: str) -> tuple[BenchmarkResult, ...]:
    """Measure artifacts of one format on an open device that has cooled down; `notes` go into every result."""
    loads = min(MAX_COMPARE_LOADINGS, max(1, options.repetitions // MIN_ROUNDS_PER_LOADING)) if options.compare else 1
    return tuple(
        msgspec.structs.replace(result, noisy=find_noise(result), notes=(*result.notes, *filter(None, notes)))
        for result in measure_latencies(device, artifacts, options, loads=loads)
    )


def bench(
    artifacts: Sequence[Path],
    *,
    device: str = "local://",
    threads: int = BENCHMARK_DEFAULTS.threads,
    repetitions: int = BENCHMARK_DEFAULTS.repetitions,
    warmup_s: float = BENCHMARK_DEFAULTS.warmup_s,
    time_limit_s: float = BENCHMARK_DEFAULTS.time_limit_s,
    timeout_s: float = BENCHMARK_DEFAULTS.timeout_s,
    python: str | None = None,
    runner: Path | None = None,
    cpu_mask: str = "",
    cooldown_c: float | None = None,
    profile: bool = False,
    compare: bool = False,
    inventory: Path | None = None,
    track: Track = track_silently,
) -> tuple[BenchmarkResult, ...]:
    """Measure artifacts on a device and return one result for each, in the order given.

    Artifacts of one format are interleaved A B A B in one process and may be compared by ratio; each format has a process of its own,
    since one runtime's threads can disturb another's.

    Args:
        device: `local://`, `ssh://user@host:port`, `adb://SERIAL`, or a name of the inventory; then the runner, interpreter, mask and
            temperature of the inventory are used where none is given here.
        inventory: The file in which the name of `device` is looked up, in place of the usual one.
        track: Shows the progress. The other arguments are the fields of `BenchmarkOptions`, which documents them.

    Raises:
        ConfigError: A value out of its range, no artifacts, one that was changed after export, one that the runtime refuses, or no two of
            one format to compare.
        DeviceError: The device or the run on it failed.
    """
    options = BenchmarkOptions(
        threads=threads,
        repetitions=repetitions,
        warmup_s=warmup_s,
        time_limit_s=time_limit_s,
        timeout_s=timeout_s,
        python=python or "",
        runner=str(runner or ""),
        cpu_mask=cpu_mask,
        cooldown_c=cooldown_c,
        profile=profile,
        compare=compare,
    )
    return bench_artifacts(artifacts, options, device=device, inventory=inventory, track=track)


def bench_artifacts(
    artifacts: Sequence[Path], options: BenchmarkOptions, *, device: str, inventory: Path | None = None, track: Track = track_silently
) -> tuple[BenchmarkResult, ...]:
    """Measure artifacts on a device as `bench` does, with the options in one record."""
    check_artifacts(artifacts, options)
    entry = resolve_device(device, inventory)
    options = apply_entry(options, entry)
    formats = dict.fromkeys(path.suffix for path in artifacts)
    groups = [[i for i, path in enumerate(artifacts) if path.suffix == suffix] for suffix in formats]
    results: dict[int, BenchmarkResult] = {}
    with open_device(entry.url) as connected:
        note = "" if options.cooldown_c is None else cool_down(connected, options.cooldown_c, track=track)
        for group in track(groups, f"measuring on {device}", total=len(groups)):
            results.update(zip(group, bench_on_device(connected, [artifacts[i] for i in group], options, note), strict=True))
    return tuple(results[i] for i in sorted(results))
