"""Views of artifacts and of what was measured on them."""

from collections.abc import Sequence
from typing import Final

from rich.table import Table

from edgecompress.cli.numbers import ms, percent, size
from edgecompress.cli.views.tables import make_table
from edgecompress.devices.statistics import CONFIDENCE, Ratio, comparable, median, ratio, speed_up
from edgecompress.records import Artifact, BenchmarkResult
from edgecompress.records.evaluation import Evaluation

MAX_OPS: Final = 10  # they take nearly all of the time, and more would not fit a screen


def tabulate_artifacts(made: Sequence[Artifact], results: Sequence[BenchmarkResult] = ()) -> Table:
    """Return size, accuracy and speed of each artifact, compared with the dense fp32 artifact of its format."""
    by_name = {result.artifact: result for result in results}
    dense = {a.format: a for a in made if a.model == "dense" and a.quant.scheme == "fp32"}
    rows = []
    for a in made:
        base, result = dense.get(a.format), by_name.get(a.path)
        reference = by_name.get(base.path) if base else None
        drop = f"{100 * (base.top1 - a.top1):+.2f}" if base and base is not a and base.top1 is not None and a.top1 is not None else "–"
        faster = f"{speed_up(reference, result):.2f}×" if reference and result and comparable(reference, result) is None else "–"
        latency = ms(median(result.latency_ms)) if result else "–"
        rows.append((a.path, size(a.size_bytes), percent(a.top1), drop, latency, faster, describe_parity(a)))
    return make_table(("artifact", "size", "top-1", "drop", "median ms", "speed-up", "parity"), rows)


def describe_parity(a: Artifact) -> str:
    """Return how far an artifact is from the model: `max 2e-07 of range` in fp32, agreement and SQNR in other schemes."""
    if a.parity is None:
        return "–"
    if a.quant.scheme == "fp32" or a.parity.top1_agreement is None:
        return f"max {a.parity.max_rel:.1e} of range"
    return f"agrees {a.parity.top1_agreement:.2%}, {a.parity.sqnr_db:.1f} dB"


def tabulate_results(measured: Sequence[BenchmarkResult], *, compare: bool = False) -> Table:
    """Return a row for each result, with its ratio to the first artifact of its session, which for `--compare` has an interval."""
    rows = []
    for result in measured:
        first = next(r for r in measured if comparable(r, result) is None)
        against = "–" if first is result else f"{speed_up(first, result):.2f}×"
        lowest, highest = min(result.latency_ms), max(result.latency_ms)
        spread = f"{lowest:.3f}–{highest:.3f}"
        row = (
            result.artifact,
            result.backend,
            str(result.threads),
            ms(median(result.latency_ms)),
            spread,
            against if not compare else "–" if first is result else describe_ratio(ratio(result, first)),
            size(result.peak_rss_bytes),
            "noisy" if result.noisy else "",
        )
        rows.append(row)
    compared = f"ratio to the first, {CONFIDENCE:.0%} interval" if compare else "speed-up"
    return make_table(("artifact", "runtime", "threads", "median ms", "min–max", compared, "peak memory", "state"), rows, text_columns=2)


def describe_ratio(found: Ratio) -> str:
    """Return a ratio with its interval, e.g. `0.512 [0.498, 0.526]`."""
    return f"{found.ratio:.3f} " + (f"[{found.low:.3f}, {found.high:.3f}]" if found.low is not None else f"(no interval: {found.why})")


def tabulate_ops(measured: Sequence[BenchmarkResult]) -> Table:
    """Return the slowest ops of each artifact whose runtime tells times per op."""
    rows = [
        (result.artifact, op.name, f"{op.calls:g}", ms(op.ms), f"{op.ms / max(1e-9, sum(each.ms for each in result.profile)):.1%}")
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
    """Return the accuracy of each artifact on the device, and how far its outputs are from this machine's and from the model's."""
    rows = [
        (
            e.artifact,
            percent(e.top1),
            percent(e.top5),
            percent(e.host_top1),
            percent(e.host.top1_agreement) if e.host else "–",
            f"{e.host.max_rel:.1e}" if e.host else "NaN",
            "–" if e.beyond_step is None else str(e.beyond_step),
            f"{e.reference.max_rel:.1e}" if e.reference else "–",
            "differs" if e.problem else "equal",
        )
        for e in made
    ]
    headings = ("artifact", "top-1", "top-5", "top-1 here", "agrees", "max of range", "over a step", "from the model", "there and here")
    return make_table(headings, rows)
