"""Measure artifacts on a device."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import msgspec

from edgecompress.devices import open_device
from edgecompress.devices.cooling import cool_down
from edgecompress.devices.inventory import settings
from edgecompress.devices.runner import FORMATS, manifest_of, measure
from edgecompress.errors import ConfigError
from edgecompress.progress import Track, silent
from edgecompress.records import BenchmarkResult
from edgecompress.statistics import noise

LOADS = 20
FEWEST_ROUNDS = 3  # after a loading, before the next


def judged(result: BenchmarkResult, *notes: str) -> BenchmarkResult:
    """Return a result that says itself whether it is noisy, with further notes."""
    return msgspec.structs.replace(result, noisy=noise(result), notes=(*result.notes, *filter(None, notes)))


def check(artifacts: Sequence[Path], *, compare: bool) -> None:
    """Refuse what cannot be measured, or compared, before any device is asked.

    Raises:
        ConfigError: No artifacts, one that was changed after export, or no two of one format to compare.
    """
    if not artifacts:
        raise ConfigError("bench: no artifacts; name files or a run folder with artifacts/")
    for path in artifacts:
        if path.suffix not in FORMATS or not path.is_file():
            raise ConfigError(f"{path}: no such artifact; it must be a file whose name ends in {', '.join(FORMATS)}")
        manifest_of(path)
    formats = dict.fromkeys(path.suffix for path in artifacts)
    if compare and (len(artifacts) < 2 or len(formats) > 1):
        raise ConfigError(f"--compare: {len(artifacts)} artifacts, formats {', '.join(formats)}; give at least two of one format")


def loads(repetitions: int, *, compare: bool) -> int:
    """Return how often each artifact is loaded anew."""
    return min(LOADS, max(1, repetitions // FEWEST_ROUNDS)) if compare else 1


def bench(
    artifacts: Sequence[Path],
    *,
    device: str = "local://",
    threads: int = 1,
    repetitions: int = 50,
    warmup_s: float = 0.5,
    time_limit_s: float = 150.0,
    timeout_s: float = 600.0,
    python: str | None = None,
    runner: Path | None = None,
    cpu_mask: str = "",
    cooldown_c: float | None = None,
    profile: bool = False,
    compare: bool = False,
    track: Track = silent,
) -> tuple[BenchmarkResult, ...]:
    """Return every latency of `artifacts` on `device`, in the order given.

    Artifacts of one format are interleaved A B A B in one process and may be compared by ratio; each format has a process of its own,
    since one runtime's threads can disturb another's.

    Args:
        device: `local://`, `ssh://user@host:port`, `adb://SERIAL`, or a name of the inventory, whose runner, mask and temperature are
            then used where none is given here.
        repetitions: Timed inferences of each artifact, fewer when `time_limit_s` is reached.
        warmup_s: At least one inference and this long, after the first, kept apart from the timed ones.
        cpu_mask: Hexadecimal, of the processors to run on; "" for all.
        cooldown_c: First wait until the hottest zone of the device is at or below this.
        profile: Also measure times per op, where the runtime tells them.
        compare: Load the artifacts anew several times, so that `statistics.ratio` can tell the interval of their ratios.
        python: The interpreter there that has the runtime.
        runner: An executable for the device that obeys the runner's protocol.

    Raises:
        ConfigError: No artifacts, one that was changed after export, one that the runtime refuses, or no two of one format to compare.
        DeviceError: The device or the run on it failed.
    """
    check(artifacts, compare=compare)
    entry = settings(device)
    runner = runner or (Path(entry.runner) if entry.runner else None)
    cpu_mask = cpu_mask or entry.cpu_mask
    cooldown_c = entry.cooldown_c if cooldown_c is None else cooldown_c
    if runner is not None and not runner.is_file():
        raise ConfigError(f"{runner}: no such runner; give an executable for the device that obeys the runner's protocol")
    formats = dict.fromkeys(path.suffix for path in artifacts)
    groups = [[i for i, path in enumerate(artifacts) if path.suffix == suffix] for suffix in formats]
    results: dict[int, BenchmarkResult] = {}
    with open_device(device) as connected:
        note = "" if cooldown_c is None else cool_down(connected, cooldown_c, track=track)
        for group in track(groups, f"measuring on {device}", total=len(groups)):
            measured = measure(
                connected,
                [artifacts[i] for i in group],
                threads=threads,
                repetitions=repetitions,
                warmup_s=warmup_s,
                time_limit_s=time_limit_s,
                timeout_s=timeout_s,
                python=python,
                runner=runner,
                loads=loads(repetitions, compare=compare),
                cpu_mask=cpu_mask,
                profile=profile,
            )
            results.update(zip(group, (judged(result, note) for result in measured), strict=True))
    return tuple(results[i] for i in sorted(chain.from_iterable(groups)))
