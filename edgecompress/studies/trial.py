"""One trial: an ordinary run folder, exported and measured, that later commands can go on with."""

import math
import platform
import shutil
import time
from pathlib import Path
from typing import Final

from edgecompress.artifacts.execution import run
from edgecompress.artifacts.publish import artifact_name
from edgecompress.data.recipe import Recipe
from edgecompress.devices.statistics import median, ratio
from edgecompress.errors import ConfigError
from edgecompress.files import replacing
from edgecompress.network.parity import compare
from edgecompress.options import Options
from edgecompress.pipeline.context import RunContext, open_context
from edgecompress.pipeline.publication import Publication, bench_artifacts, publish, restore_error
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.progress import Track, silent
from edgecompress.records import Artifact, BenchmarkResult, CompressionPlan, Score, SearchPoint
from edgecompress.records.search import Value
from edgecompress.reporting.report import report
from edgecompress.runs import Run, is_run, open_run, read_run
from edgecompress.studies.loop import Refused

TOP1: Final = "top-1"
LEAST_S: Final = 2.0  # of measuring; machines are slower for tenths of a second at a time, all of a hundred inferences of a small network
MOST: Final = 1000  # inferences
ATTEMPTS: Final = 3  # at a measurement that nothing disturbs
AGREEMENT: Final = "agreement with the dense network"


def try_out(
    number: int, folder: Path, choice: dict[str, Value], *, recipe: Recipe, options: Options, device: str, track: Track = silent
) -> SearchPoint:
    """Export and measure what `options` ask for, one file; steps that the folder holds already are reused.

    Args:
        options: Those of the trial; `choice` only goes into the record.

    Raises:
        Refused: The file was not published.
        EdgeCompressError: Whatever a run may end with.
    """
    started = time.perf_counter()
    with open_run(folder, name=recipe.name, recipe=recipe.source) as opened:
        opened.set_options(options)
        inherit(opened)
        context = open_context(opened, recipe, track=track)
        publication = publish(context)
        artifacts = publication.exported.artifacts
        made = next((a for a in artifacts if a.model == "compressed"), None)
        if made is None:
            raise Refused(str(restore_error(publication.exported.refused[-1])))
        dense = next((a for a in artifacts if a.model == "dense" and a.format == made.format), None)
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
            accuracy_of=AGREEMENT if made.top1 is None else TOP1,
            macs_ratio=plan.macs / max(1, plan.macs_before),
            dense=None if dense is None else _score(context, dense, median(times[dense.path].latency_ms)),
            backend=times[made.path].backend,
            seconds=round(time.perf_counter() - started, 3),
            noisy=times[made.path].noisy,
        )


def inherit(ours: Run) -> None:
    """Take over from other trials what does not depend on the choice: the analysis, and the dense files.

    Whether they were made from just the same, the steps themselves check.
    """
    o = ours.record.options
    names = ("analyze", *(f"artifacts/{artifact_name(ours.record.name, 'dense', name, 'fp32')}" for name in o.format))
    for folder in sorted(path for path in ours.folder.parent.iterdir() if path != ours.folder and is_run(path)):
        other = read_run(folder)
        for name in names if other.options.resolution == o.resolution else ():
            step = other.steps.get(name)
            if step is None or name in ours.record.steps or not all((folder / file).is_file() for file in step.files):
                continue
            for file in step.files:
                with replacing(ours.path(file)) as temporary:
                    shutil.copyfile(folder / file, temporary)
            ours.finish(name, step.made_from, tuple(step.files), step.seconds)


def measure_in_turns(
    context: RunContext, publication: Publication, artifacts: tuple[Artifact, ...], device: str
) -> tuple[BenchmarkResult, ...]:
    """Measure a trial's file and the dense one in turns, each loaded many times, for as long as a disturbance of the machine may last.

    How often that is tells what they took here, whatever the device. What is noisy is measured again, and the last attempt stands.
    """
    here = sum(median(result.latency_ms) for result in publication.measured if result.artifact in {a.path for a in artifacts})
    repetitions = max(context.options.repetitions, min(MOST, math.ceil(1000 * LEAST_S / max(here, 1e-3))))
    paths = tuple(context.run.path("artifacts") / a.path for a in artifacts)
    for _ in range(ATTEMPTS):
        results = bench_artifacts(context, paths, device=device, repetitions=repetitions, compare=len(paths) > 1)
        measured = tuple(result for result, _ in results)
        if not any(result.noisy for result in measured):
            break
    return measured


def _score(context: RunContext, artifact: Artifact, latency_ms: float) -> Score:
    accuracy = artifact.top1
    if accuracy is None:
        accuracy = _agreement(context, artifact)
    return Score(accuracy=accuracy, latency_ms=latency_ms, size_bytes=artifact.size_bytes)


def _agreement(context: RunContext, artifact: Artifact) -> float:
    """Return how often the file answers as the dense network does, where nobody knows what is right.

    Raises:
        ConfigError: There are no class scores to go by.
    """
    inputs = context.evidence.inputs
    found, _ = run(context.run.path("artifacts") / artifact.path, artifact.inputs, artifact.outputs, inputs)
    agreed = compare(found, context.dense_outputs).top1_agreement
    if agreed is None:
        raise ConfigError(f"{context.recipe.source}: its outputs are no class scores, so trials cannot be ranked; compare runs by hand")
    return agreed
