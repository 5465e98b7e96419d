"""Views of artifacts, and of their latencies and accuracies on a device."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.table import Table

from edgecompress.cli.views.tables import make_table
from edgecompress.devices.statistics import CONFIDENCE, Ratio, comparable, median, ratio, speed_up
from edgecompress.records import Artifact, BenchmarkResult
from edgecompress.records.evaluation import Evaluation
from edgecompress.reporting.comparison import group_results
from edgecompress.reporting.document import ArtifactRow
from edgecompress.reporting.numbers import (
    UNKNOWN,
    format_error,
    format_exact,
    format_factor,
    format_metric,
    format_metric_change,
    format_ms,
    format_percent,
    format_ratio,
    format_share,
    format_size,
)
from edgecompress.reporting.quality import describe_conversion, describe_kept, format_kept

MAX_OPS: Final = 10  # they take nearly all of the time, and more would not fit a screen


def tabulate_artifacts(made: Sequence[Artifact], results: Sequence[BenchmarkResult] = ()) -> Table:
    """Return size, metric, both proofs and speed of each artifact, compared with the dense fp32 artifact of its format.

    The column `keeps` is the proof of compression, how much is left of the network as given; `conversion` is that the file is what was
    compressed. Only the names fold where the terminal is narrow.
    """
    groups, unmeasured, _ = group_results(tuple(made), tuple(results))
    found = {row.artifact: row for row in (*unmeasured, *(row for group in reversed(groups) for row in group.rows))}
    rows = [found[a.path] for a in made]
    spec = next((row.metric for row in rows if row.metric), None)
    scored = (spec.name, "change") if spec else ()
    headings = ("artifact", "size", *scored, "keeps", "median ms", "speed-up", "conversion")
    return make_table(headings, map(_describe_row, rows), fold=("artifact",))


def _describe_row(row: ArtifactRow) -> tuple[str, ...]:
    scored: tuple[str, ...] = ()
    if spec := row.metric:
        change = UNKNOWN if row.baseline else format_metric_change(row.change, is_accuracy=spec.is_accuracy)
        scored = (format_metric(row.value, is_accuracy=spec.is_accuracy), change)
    latency = format_ms(row.latency.median_ms) if row.latency else UNKNOWN
    proof = describe_conversion(row.parity, row.scheme)
    name = f"{row.artifact} (slower than dense)" if row.slower_than else row.artifact
    return (name, format_size(row.size_bytes), *scored, format_kept(row.fidelity), latency, format_factor(row.speed_up), proof)


def list_compression(made: Sequence[Artifact]) -> Iterator[str]:
    """Yield how much each artifact keeps of every output of the network as given, a line an output."""
    for artifact in made:
        for each in artifact.fidelity.outputs if artifact.fidelity else ():
            yield f"{artifact.path} keeps {describe_kept(each)}"


def tabulate_results(measured: Sequence[BenchmarkResult], *, compare: bool = False) -> Table:
    """Return a row for each result, with its ratio to the first artifact of its session, which for `--compare` has an interval."""
    rows = []
    for result in measured:
        first = next(r for r in measured if comparable(r, result) is None)
        against = UNKNOWN if first is result else format_factor(speed_up(first, result))
        lowest, highest = min(result.latency_ms), max(result.latency_ms)
        spread = f"{format_ms(lowest)}–{format_ms(highest)}"
        row = (
            result.artifact,
            result.backend,
            str(result.threads),
            format_ms(median(result.latency_ms)),
            spread,
            against if not compare else UNKNOWN if first is result else describe_ratio(ratio(result, first)),
            format_size(result.peak_rss_bytes),
            "noisy" if result.noisy else "",
        )
        rows.append(row)
    compared = f"ratio to the first, {CONFIDENCE:.0%} interval" if compare else "speed-up"
    return make_table(("artifact", "runtime", "threads", "median ms", "min–max", compared, "peak memory", "state"), rows, text_columns=2)


def describe_ratio(found: Ratio) -> str:
    """Return a ratio with its interval, e.g. `0.512 [0.498, 0.526]`."""
    interval = f"(no interval: {found.why})" if found.low is None else f"[{format_ratio(found.low)}, {format_ratio(found.high)}]"
    return f"{format_ratio(found.ratio)} {interval}"


def tabulate_ops(measured: Sequence[BenchmarkResult]) -> Table:
    """Return the slowest ops of each artifact whose runtime tells times per op."""
    rows = [
        (
            result.artifact,
            op.name,
            format_exact(op.calls),
            format_ms(op.ms),
            format_share(op.ms / max(1e-9, sum(each.ms for each in result.profile))),
        )
        for result in measured
        for op in result.profile[:MAX_OPS]
    ]
    return make_table(("artifact", "op", "calls", "ms", "share"), rows, text_columns=2)


def list_remarks(measured: Sequence[BenchmarkResult], *, noise_only: bool = False) -> list[str]:
    """Return each reason for noise and, unless `noise_only`, each note of a runner once, with the artifacts that have it."""
    shared: dict[str, list[str]] = {}
    for result in measured:
        for text in (*(f"noisy: {why}" for why in result.noisy), *(() if noise_only else result.notes)):
            shared.setdefault(text, []).append(result.artifact)
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in shared.items()]


def tabulate_evaluations(made: Sequence[Evaluation]) -> Table:
    """Return the metric of each artifact on the device and here, and how far its outputs are from this machine's and the model's."""
    names, ranked = {e.headline.name for e in made}, any(e.top5 is not None for e in made)
    rows = [
        (
            e.artifact,
            format_metric(e.value, is_accuracy=e.headline.is_accuracy),
            format_metric(e.host_value, is_accuracy=e.headline.is_accuracy),
            *((format_percent(e.top5),) if ranked else ()),
            format_percent(e.host.top1_agreement if e.host else None),
            format_error(e.host.max_rel) if e.host else "NaN",
            UNKNOWN if e.beyond_step is None else str(e.beyond_step),
            format_error(e.reference.max_rel) if e.reference else UNKNOWN,
            "differs" if e.problem else "equal",
        )
        for e in made
    ]
    name = names.pop() if len(names) == 1 else "metric"
    headings = (
        "artifact",
        name,
        f"{name} here",
        *(("top-5",) if ranked else ()),
        "agrees",
        "max of range",
        "over a step",
        "from the model",
        "there and here",
    )
    return make_table(headings, rows)
