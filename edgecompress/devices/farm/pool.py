"""Measure or evaluate artifacts on a pool: all devices of the inventory that carry one label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecompress.devices import bench
from edgecompress.devices.farm.run import OnChange, OnResult, run_farm
from edgecompress.devices.inventory import InventoryEntry, load_inventory, select_by_label
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkOptions, BenchmarkResult
from edgecompress.records.evaluation import Evaluation, EvaluationOptions

POOL_PREFIX: Final = "pool:"


def is_pool(device: str) -> bool:
    """Tell whether a device argument is `pool:LABEL`."""
    return device.startswith(POOL_PREFIX)


def select_members(device: str, entries: Sequence[InventoryEntry]) -> tuple[InventoryEntry, ...]:
    """Return the entries that `pool:LABEL` names.

    Raises:
        ConfigError: No entry carries the label.
    """
    label = device.removeprefix(POOL_PREFIX)
    members = select_by_label(entries, label)
    if not members:
        known = ", ".join(sorted({label for entry in entries for label in entry.labels})) or "none"
        said = sanitize(label, limit=80)
        raise ConfigError(f"pool:{said}: no device of the inventory has this label; labels there: {known}; see `edgecompress devices`")
    return members


def bench_pool(
    artifacts: Sequence[Path],
    options: BenchmarkOptions = BenchmarkOptions(),
    *,
    device: str,
    inventory: Path | None = None,
    on_result: OnResult = lambda _: None,
    on_change: OnChange = lambda _: None,
) -> tuple[BenchmarkResult, ...]:
    """Return the latencies of `artifacts`, each from the device of the pool that was free first; for a comparison all from one device.

    Args:
        device: `pool:LABEL`.
        inventory: The file that lists the devices, in place of the usual one.
        on_result: Called with each result as soon as it arrives.
        on_change: Called with the schedule whenever it may have changed.

    Raises:
        ConfigError: No such pool, or nothing to measure.
        FarmError: Some jobs have no result; has those of the others.
    """
    bench.check_artifacts(artifacts, options)
    jobs = [list(artifacts)] if options.compare else [[path] for path in artifacts]
    members = select_members(device, load_inventory(inventory))
    return run_farm(members, jobs, options, on_result=on_result, on_change=on_change)


def evaluate_pool(
    artifacts: Sequence[Path],
    options: EvaluationOptions = EvaluationOptions(),
    *,
    device: str,
    inventory: Path | None = None,
    on_result: OnResult = lambda _: None,
    on_change: OnChange = lambda _: None,
) -> tuple[Evaluation, ...]:
    """Return the accuracy of `artifacts`, each on the device of the pool that was free first. The arguments are those of `bench_pool`.

    Raises:
        ConfigError: No such pool, nothing to evaluate, or data that do not fit an artifact.
        FarmError: Some jobs have no result; has those of the others.
        ParityError: An artifact computes something else there than here; raised when all have been evaluated.
    """
    from edgecompress.devices import evaluate
    from edgecompress.devices.labelled_data import prepare_job

    evaluate.check_scoring(artifacts, options)
    members = select_members(device, load_inventory(inventory))
    for path in artifacts:  # data that do not fit are found here, before any device is asked
        prepare_job(path, options.data, options.samples)
    jobs = [[path] for path in artifacts]
    return evaluate.require_host_parity(run_farm(members, jobs, options, on_result=on_result, on_change=on_change))
