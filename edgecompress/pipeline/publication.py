"""After the last step: the artifacts of a run measured, and its report written."""

import dataclasses
from pathlib import Path
from typing import Final, NamedTuple

from edgecompress import errors
from edgecompress.devices.bench import bench
from edgecompress.errors import EdgeCompressError
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.latencies import LOCAL
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.pipeline.runner import run
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import Artifact, BenchmarkResult, ExportResult, Record, RefusedArtifact, read_record
from edgecompress.records.artifact import Refusal, group_refusals
from edgecompress.reporting.document import Verdict
from edgecompress.reporting.report import report
from edgecompress.runs import hash_values, stopwatch, store_result

REPORTED: Final = ("plan", "finetune", "export")  # the steps that others may take hours after


class Publication(NamedTuple):
    """What an export published and refused, the latencies of the published files on this machine, and the verdict of the report."""

    exported: ExportResult
    measured: tuple[BenchmarkResult, ...]
    verdict: Verdict


def publish(context: RunContext) -> Publication:
    """Run every missing step, measure the artifacts on this machine and write the report, which can be read from the first plan on.

    Refused artifacts are in the result; `check_refusals` makes an error of them.
    """

    def report_step(name: str, record: Record, seconds: float, reused: bool) -> None:
        context.on_step(name, record, seconds, reused)
        if not reused and _is_worth_reporting(context, name):
            report(context.run.folder, read_run_records(context.run.folder))

    run(dataclasses.replace(context, on_step=report_step), "export")
    exported = context.read(ExportResult)
    measured = measure_artifacts(context, exported.artifacts) if exported.artifacts else ()
    found = report(context.run.folder, read_run_records(context.run.folder))
    return Publication(exported, measured, found.verdict)


def _is_worth_reporting(context: RunContext, name: str) -> bool:
    """Whether a finished step has something new for readers, and no step behind it has a record of an earlier run."""
    steps = list(STEPS)
    later = steps[steps.index(name) + 1 :] if name in REPORTED else ()
    return name in REPORTED and not any(context.run.path(STEPS[step].files[0]).exists() for step in later)


def check_refusals(exported: ExportResult) -> None:
    """Let an export pass in which no artifact was refused that was asked for.

    Raises:
        EdgeCompressError: Artifacts were refused: the error with the cause of most of them, in its own class.
    """
    if main := find_main_refusal(exported):
        kind: type[EdgeCompressError] = getattr(errors, main.error)
        raise kind(f"{', '.join(main.paths)}: {main.cause}")


def find_main_refusal(exported: ExportResult) -> Refusal | None:
    """Return the cause for which most files were refused that were asked for, the first of several; None where none was."""
    asked = [group for group in group_refusals(exported.refused) if not group.for_comparison]
    return max(asked, key=lambda group: len(group.paths), default=None)


def restore_error(refused: RefusedArtifact) -> EdgeCompressError:
    """Return the error of a refused artifact as it was raised."""
    kind: type[EdgeCompressError] = getattr(errors, refused.error)
    return kind(refused.reason)


def measure_artifacts(context: RunContext, artifacts: tuple[Artifact, ...]) -> tuple[BenchmarkResult, ...]:
    """Measure artifacts on this machine, unless just these files were measured already with the same options."""
    o, record = context.options, context.run
    made_from = hash_values([artifact.sha256 for artifact in artifacts], o.threads, o.repetitions)
    if not record.is_done("bench", made_from):
        with stopwatch() as spent:
            results = bench_artifacts(context, tuple(record.path("artifacts") / artifact.path for artifact in artifacts))
        files = tuple(str(path.relative_to(record.folder)) for _, path in results)
        record.finish("bench", made_from, files, spent[0])
    return tuple(read_record(record.path(name), BenchmarkResult) for name in record.record.steps["bench"].files)


def bench_artifacts(
    context: RunContext, paths: tuple[Path, ...], *, device: str = LOCAL, repetitions: int = 0, compare: bool = False
) -> tuple[tuple[BenchmarkResult, Path], ...]:
    """Measure files, interleaved, as often as the options of the run say; keep each result under `results/` and return it with its path."""
    o = context.options
    results = bench(paths, device=device, threads=o.threads, repetitions=repetitions or o.repetitions, compare=compare, track=context.track)
    return tuple((result, store_result(context.run.folder, result)) for result in results)
