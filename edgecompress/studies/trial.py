"""One trial of a search: an ordinary run folder, exported and measured, that later commands can continue."""

import math
import platform
import shutil
import time
from pathlib import Path
from typing import Final

import msgspec

from edgecompress.artifacts.judge import DenseComparison
from edgecompress.artifacts.publish import artifact_name
from edgecompress.data.recipe import Recipe
from edgecompress.devices.statistics import median, ratio
from edgecompress.files import replace_atomically
from edgecompress.options import Options
from edgecompress.pipeline.context import RunContext, open_context
from edgecompress.pipeline.publication import Publication, bench_artifacts, publish, restore_error
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.progress import Track, track_silently
from edgecompress.records import Artifact, BenchmarkResult, CompressionPlan, Score, SearchPoint
from edgecompress.records.search import Value
from edgecompress.reporting.report import report
from edgecompress.runs import Run, is_run, open_run, read_run
from edgecompress.studies.loop import RefusedTrial
from edgecompress.targets import FLOAT32

# Machines are slower for tenths of a second at a time, which can be all hundred inferences of a small network.
MIN_MEASURED_S: Final = 2.0
MAX_REPETITIONS: Final = 1000
ATTEMPTS: Final = 3  # A noisy measurement is repeated until it has been tried so often.
FIDELITY: Final = "kept of the dense network"
UNBOUNDED: Final = 1e9  # a search shows the whole trade-off between the metric and the latency, unless the user bounds the loss


def run_trial(
    number: int, folder: Path, choice: dict[str, Value], *, recipe: Recipe, options: Options, device: str, track: Track = track_silently
) -> SearchPoint:
    """Export and measure the one file that `options` ask for; steps that are in the folder already are reused.

    Args:
        options: Options of the trial; `choice` only goes into the record.

    Raises:
        RefusedTrial: The file was refused.
        EdgeCompressError: A step of the run failed.
    """
    started = time.perf_counter()
    with open_run(folder, name=recipe.name, recipe=recipe.source) as opened:
        opened.set_options(msgspec.structs.replace(options, max_loss=UNBOUNDED if options.max_loss is None else options.max_loss))
        copy_shared_steps(opened)
        context = open_context(opened, recipe, track=track)
        publication = publish(context)
        artifacts = publication.exported.artifacts
        made = next((a for a in artifacts if a.model == "compressed"), None)
        if made is None:
            raise RefusedTrial(str(restore_error(publication.exported.refused[-1])))
        dense = next((a for a in artifacts if a.model == "dense" and (a.format, a.quant.scheme) == (made.format, FLOAT32)), None)
        measured = measure_in_turns(context, publication, tuple(a for a in (dense, made) if a is not None), device)
        report(opened.folder, read_run_records(opened.folder))
        plan, times = context.read(CompressionPlan), {result.artifact: result for result in measured}
        ms = median(times[made.path].latency_ms)
        if dense is not None:
            ms = ratio(times[made.path], times[dense.path]).ratio * median(times[dense.path].latency_ms)
        return SearchPoint(
            trial=number,
            run=f"trials/{folder.name}",
            host=platform.node(),
            choice=choice,
            artifact=made.path,
            score=_score(context, made, ms),
            accuracy_of=_name_accuracy(context),
            macs_ratio=plan.macs / max(1, plan.macs_before),
            dense=None if dense is None else _score(context, dense, median(times[dense.path].latency_ms)),
            backend=times[made.path].backend,
            seconds=round(time.perf_counter() - started, 3),
            noisy=times[made.path].noisy,
        )


def copy_shared_steps(ours: Run) -> None:
    """Copy the steps that do not depend on the choice from other trials: the probe, the analysis and the dense files.

    Their keys are copied as well, so a step that was made from something else is made anew.
    """
    o = ours.record.options
    names = (
        "check",
        "analyze",
        *(f"artifacts/{artifact_name(ours.record.name, 'dense', name, scheme)}" for name in o.format for scheme in (FLOAT32, *o.scheme)),
    )
    for folder in sorted(path for path in ours.folder.parent.iterdir() if path != ours.folder and is_run(path)):
        other = read_run(folder)
        for name in names if other.options.resolution == o.resolution else ():
            step = other.steps.get(name)
            if step is None or name in ours.record.steps or not all((folder / file).is_file() for file in step.files):
                continue
            for file in step.files:
                with replace_atomically(ours.path(file)) as temporary:
                    shutil.copyfile(folder / file, temporary)
            ours.finish(name, step.made_from, tuple(step.files), step.seconds)


def measure_in_turns(
    context: RunContext, publication: Publication, artifacts: tuple[Artifact, ...], device: str
) -> tuple[BenchmarkResult, ...]:
    """Measure the file of a trial and the dense file in turns, each loaded many times, for longer than a disturbance of the machine lasts.

    The number of inferences follows from their latency on this machine, also for other devices. A noisy measurement is repeated, and the
    last attempt counts.
    """
    here = sum(median(result.latency_ms) for result in publication.measured if result.artifact in {a.path for a in artifacts})
    repetitions = max(context.options.repetitions, min(MAX_REPETITIONS, math.ceil(1000 * MIN_MEASURED_S / max(here, 1e-3))))
    paths = tuple(context.run.path("artifacts") / a.path for a in artifacts)
    for _ in range(ATTEMPTS):
        results = bench_artifacts(context, paths, device=device, repetitions=repetitions, compare=len(paths) > 1)
        measured = tuple(result for result, _ in results)
        if not any(result.noisy for result in measured):
            break
    return measured


def _name_accuracy(context: RunContext) -> str:
    """Return the name of what trials are ranked by."""
    headline = context.judge.headline
    return FIDELITY if headline is None else headline.name if headline.is_accuracy else f"kept of {headline.name}"


def _score(context: RunContext, artifact: Artifact, latency_ms: float) -> Score:
    """Return the score of a trial; its accuracy is that of the metric, or without a metric the fraction kept of the worst output."""
    assert artifact.fidelity is not None
    found = DenseComparison(fidelity=artifact.fidelity, metrics=artifact.metrics)
    return Score(accuracy=context.judge.quality(found), latency_ms=latency_ms, size_bytes=artifact.size_bytes)
