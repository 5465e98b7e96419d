"""Views of artifacts, and of their latencies and accuracies on a device."""

from collections.abc import Sequence
from typing import Final

from rich.table import Table

from edgecompress.cli.views.tables import make_table
from edgecompress.devices.statistics import CONFIDENCE, Ratio, comparable, median, ratio, speed_up
from edgecompress.records import Artifact, BenchmarkResult
from edgecompress.records.evaluation import Evaluation
from edgecompress.records.metrics import MetricSpec, metric_loss
from edgecompress.reporting.numbers import (
    UNKNOWN,
    format_db,
    format_error,
    format_exact,
    format_factor,
    format_loss,
    format_metric,
    format_ms,
    format_percent,
    format_ratio,
    format_share,
    format_size,
)
from edgecompress.targets import SCHEMES

MAX_OPS: Final = 10  # they take nearly all of the time, and more would not fit a screen


def tabulate_artifacts(made: Sequence[Artifact], results: Sequence[BenchmarkResult] = ()) -> Table:
    """Return size, metric, fidelity and speed of each artifact, compared with the dense fp32 artifact of its format.

    The column `keeps` is the proof of compression, how much is left of the network as given; `conversion` is that the file is what was
    compressed.
    """
    by_name = {result.artifact: result for result in results}
    dense = {a.format: a for a in made if a.model == "dense" and a.quant.scheme == "fp32"}
    spec = next((a.metric for a in made if a.metric), None)
    rows = []
    for a in made:
        base, result = dense.get(a.format), by_name.get(a.path)
        reference = by_name.get(base.path) if base else None
        faster = format_factor(speed_up(reference, result)) if reference and result and comparable(reference, result) is None else UNKNOWN
        latency = format_ms(median(result.latency_ms)) if result else UNKNOWN
        scored = _describe_metric(a, base, spec) if spec else ()
        rows.append((a.path, format_size(a.size_bytes), *scored, describe_fidelity(a), latency, faster, describe_parity(a)))
    scored = (spec.name, "change") if spec else ()
    return make_table(("artifact", "size", *scored, "keeps", "median ms", "speed-up", "conversion"), rows)


def _describe_metric(a: Artifact, base: Artifact | None, spec: MetricSpec) -> tuple[str, str]:
    """Return the value of the metric, and its change from the dense fp32 file."""
    value = a.metrics.get(spec.name)
    lost = None
    if base and base is not a and value is not None and spec.name in base.metrics:
        lost = metric_loss(spec, base.metrics, a.metrics)
    return format_metric(value, is_accuracy=spec.is_accuracy), format_loss(lost, is_accuracy=spec.is_accuracy)


def describe_fidelity(a: Artifact) -> str:
    """Return how much of the dense network's outputs a file keeps, that of the worst output: `97.4%`."""
    worst = a.fidelity.worst if a.fidelity else None
    return UNKNOWN if worst is None else format_share(worst.kept)


def describe_parity(a: Artifact) -> str:
    """Return how far an artifact is from the network that it was converted from: the number that the gate decided by."""
    if a.parity is None:
        return UNKNOWN
    if SCHEMES[a.quant.scheme].gate.max_rel is not None:
        return f"max {format_error(a.parity.max_rel)} of range"
    same = [each for each in (a.parity.top1_agreement, a.parity.integer_agreement) if each is not None]
    told = f"agrees {format_percent(min(same))}, " if same else ""
    return f"{told}{format_db(a.parity.sqnr_db)} dB"


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


def list_remarks(measured: Sequence[BenchmarkResult]) -> list[str]:
    """Return each reason for noise and each note of a runner once, with the artifacts that have it."""
    shared: dict[str, list[str]] = {}
    for result in measured:
        for text in (*(f"noisy: {why}" for why in result.noisy), *result.notes):
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
