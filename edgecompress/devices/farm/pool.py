"""Measure or evaluate artifacts on a pool: every device of the inventory that carries a label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecompress.devices import bench
from edgecompress.devices.base import clean
from edgecompress.devices.farm.run import Keep, Watch, run_farm
from edgecompress.devices.inventory import Entry, load, matching
from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkResult, Measuring
from edgecompress.records.evaluation import Evaluation, Scoring

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
    how: Measuring = Measuring(),
    *,
    device: str,
    inventory: Path | None = None,
    keep: Keep = lambda _: None,
    watch: Watch = lambda _: None,
) -> tuple[BenchmarkResult, ...]:
    """Return the latencies of `artifacts`, each from whichever device of the pool was free first; to compare them, all from one device.

    Args:
        device: `pool:LABEL`.
        inventory: The file that has the devices, in place of the usual one.
        keep: Called with each result as soon as it is there.
        watch: Called with the schedule whenever it may have changed.

    Raises:
        ConfigError: No such pool, or nothing to measure.
        FarmError: Some jobs have no result; has those of the others.
    """
    bench.check(artifacts, how)
    jobs = [list(artifacts)] if how.compare else [[path] for path in artifacts]
    return run_farm(members(device, load(inventory)), jobs, how, keep=keep, watch=watch)


def evaluate_pool(
    artifacts: Sequence[Path],
    how: Scoring = Scoring(),
    *,
    device: str,
    inventory: Path | None = None,
    keep: Keep = lambda _: None,
    watch: Watch = lambda _: None,
) -> tuple[Evaluation, ...]:
    """Return the accuracy of `artifacts`, each on whichever device of the pool was free first; see `bench_pool`.

    Raises:
        ConfigError: No such pool, nothing to evaluate, or data that do not fit an artifact.
        FarmError: Some jobs have no result; has those of the others.
        ParityError: An artifact computes something else there than here; raised when all have been evaluated.
    """
    from edgecompress.devices import evaluate
    from edgecompress.devices.labelled import prepare

    evaluate.check(artifacts, how)
    found = members(device, load(inventory))
    for path in artifacts:  # data that do not fit are found here, before any device is asked
        prepare(path, how.data, how.samples)
    return evaluate.agreed(run_farm(found, [[path] for path in artifacts], how, keep=keep, watch=watch))
