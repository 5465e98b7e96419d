"""Measure artifacts on a pool: every device of the inventory that carries a label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecompress.devices.base import clean
from edgecompress.devices.inventory import Entry, load, matching
from edgecompress.errors import ConfigError
from edgecompress.farm.messages import Settings
from edgecompress.farm.run import Keep, Watch, run_farm
from edgecompress.records import BenchmarkResult
from edgecompress.verbs.bench import check, loads

POOL: Final = "pool:"


def is_pool(device: str) -> bool:
    return device.startswith(POOL)


def members(device: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries that `pool:LABEL` names.

    Raises:
        ConfigError: There is none.
    """
    label = device.removeprefix(POOL)
    found = matching(entries, label)
    if not found:
        known = ", ".join(sorted({label for entry in entries for label in entry.labels})) or "none"
        said = clean(label, limit=80)
        raise ConfigError(f"pool:{said}: no device of the inventory has this label; labels there: {known}; see `edgecompress devices`")
    return found


def bench_pool(
    artifacts: Sequence[Path],
    *,
    device: str,
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
    keep: Keep = lambda _: None,
    watch: Watch = lambda _: None,
) -> tuple[BenchmarkResult, ...]:
    """Return the latencies of `artifacts`, each from whichever device of the pool was free first; with `compare` all from one device.

    Args:
        device: `pool:LABEL`; the other arguments are those of the verb bench.
        keep: Called with each result as soon as it is there.
        watch: Called with the schedule whenever it may have changed.

    Raises:
        ConfigError: No such pool, or nothing to measure.
        FarmError: Some jobs have no result; has those of the others.
    """
    check(artifacts, compare=compare)
    if runner is not None and not runner.is_file():
        raise ConfigError(f"{runner}: no such runner; give an executable for the devices that obeys the runner's protocol")
    settings = Settings(
        threads=threads,
        repetitions=repetitions,
        warmup_s=warmup_s,
        time_limit_s=time_limit_s,
        timeout_s=timeout_s,
        loads=loads(repetitions, compare=compare),
        profile=profile,
        runner=str(runner.resolve()) if runner else "",
        python=python or "",
        cpu_mask=cpu_mask,
        cooldown_c=cooldown_c,
    )
    jobs = [list(artifacts)] if compare else [[path] for path in artifacts]
    return run_farm(members(device, load()), jobs, settings, keep=keep, watch=watch)
