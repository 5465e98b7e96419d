"""Records as tables. Plain text when piped; nothing from a device or a model file is read as markup."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from edgecompress.cli.numbers import count, ms, percent, rank, size
from edgecompress.devices.probe import NOTABLE_CPU_FEATURES
from edgecompress.devices.statistics import CONFIDENCE, Ratio, comparable, median, ratio, speed_up
from edgecompress.devices.text import sanitize
from edgecompress.records import (
    Artifact,
    BenchmarkResult,
    CompressionPlan,
    CostTable,
    DecomposeResult,
    DeviceInfo,
    FinetuneResult,
    ModelStats,
    QatResult,
    QuantizeResult,
)
from edgecompress.targets import TARGETS

TEXTS: Final = {"why", "model", "os", "cpu", "governor", "labels"}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """A borderless table; the first `left` columns are text, the others numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, heading in enumerate(headings):
        text = i < left or heading in TEXTS
        made.add_column(heading, justify="left" if text else "right", overflow="fold", no_wrap=not text or i < left)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def stats(record: ModelStats) -> Table:
    rows = [
        (
            layer.name,
            layer.kind,
            rank(layer.weight_shape),
            rank(layer.output_shape),
            count(layer.params),
            count(layer.macs),
            f"{layer.macs / max(1, record.macs):.1%}",
            size(layer.activation_bytes),
            ms(layer.latency_ms),
        )
        for layer in record.layers
    ]
    rows.append(("total", "", "", "", count(record.params), count(record.macs), "", "", ms(record.latency_ms)))
    return table(("layer", "kind", "weight", "output", "params", "MACs", "share", "activations", "ms"), rows, left=2)


def plan(record: CompressionPlan) -> Table:
    """Each layer's form and cost; with latencies, milliseconds before and after; why it was chosen and why others lost."""
    timed = record.latency_ms is not None
    rows = [
        (
            step.layer,
            step.form,
            rank(step.rank),
            f"{count(step.macs_before)} → {count(step.macs)}",
            f"{step.macs / max(1, step.macs_before):.2f}",
            *([f"{ms(step.latency_ms_before)} → {ms(step.latency_ms)}"] if timed else []),
            f"{step.relative_error:.3f}",
            f"{step.loss_increase:.2g}",
            "; ".join((step.why, *step.alternatives)),
        )
        for step in record.layers
    ]
    rows += [
        (s.layer, "dense", "–", count(s.macs), "1.00", *([ms(s.latency_ms)] if timed else []), "–", "–", s.reason) for s in record.skipped
    ]
    total = f"{count(record.macs_before)} → {count(record.macs)}"
    times = [f"{ms(record.latency_ms_before)} → {ms(record.latency_ms)}"] if timed else []
    notes = (f"{record.scheme} on {record.measured_on}: {_faster(record)}",) if timed else ()
    why = "; ".join((*notes, *record.notes))
    rows.append(("total", "", "", total, f"{record.macs / max(1, record.macs_before):.2f}", *times, "", "", why))
    return table(("layer", "form", "rank", "MACs", "ratio", *(["ms"] if timed else []), "error", "loss", "why"), rows, left=2)


def _faster(record: CompressionPlan) -> str:
    before, after = record.latency_ms_before or 0.0, record.latency_ms or 0.0
    return f"{before / after:.2f}× as fast as dense, predicted" if after > 0 else "no time is left, predicted"


def costs(record: CostTable, network: ModelStats) -> Table:
    """For each layer shape and scheme the dense layer, and its forms from the fastest to the slowest."""
    schemes = list(dict.fromkeys(s for forms in record.layers.values() for costs in forms.values() for s in costs))
    rows = []
    for geometry, forms in record.layers.items():
        for scheme in schemes:
            dense = forms["dense"].get(scheme) if "dense" in forms else None
            others = sorted((costs[scheme].ms, form) for form, costs in forms.items() if form != "dense" and scheme in costs)
            slower = sum(1 for value, _ in others if dense and value >= dense.ms)
            fastest = f"{others[0][1]} {ms(others[0][0])}" if others else "–"
            rows.append((geometry, scheme, ms(dense.ms) if dense else "–", str(len(others)), str(slower), fastest))
    for measured in record.networks.values():
        rows += [(f"{network.model} whole, dense", scheme, ms(cost.ms), "", "", "") for scheme, cost in measured.items()]
    return table(("layer", "scheme", "dense ms", "forms", "slower than dense", "fastest"), rows, left=2)


def decomposed(record: DecomposeResult) -> Table:
    return table(("layer", "relative error"), [(name, f"{error:.4f}") for name, error in record.relative_errors.items()])


def finetuned(record: FinetuneResult) -> Table:
    rows = [
        (
            "re-estimated BatchNorm" if e.epoch == 0 else str(e.epoch),
            f"{e.loss:.4f}" if e.epoch else "–",
            percent(e.top1),
            f"{e.seconds:.1f}",
        )
        for e in record.epochs
    ]
    return table(("epoch", "loss", "top-1", "s"), [("dense", "–", percent(record.dense_top1), "–"), *rows])


def quantized(record: QuantizeResult) -> Table:
    """Each layer's weight on int8 grids; with mixed precision also the network with that layer alone in int8, and the choice."""
    plan, rows = record.precision, []
    chosen = {choice.layer: choice for choice in plan.layers} if plan else {}
    for layer in record.layers:
        row = [layer.layer, f"{layer.per_channel_sqnr_db:.1f}", f"{layer.per_tensor_sqnr_db:.1f}"]
        if one := chosen.get(layer.layer):
            row += [f"{one.alone_sqnr_db:.1f}", percent(one.alone_agreement), one.scheme, one.why]
        elif plan:
            given = [scheme for name, scheme in sorted(plan.by_hand.items()) if f"{layer.layer}.".startswith(f"{name}.")]
            row += ["–", "–", *(given[-1:] or [plan.scheme]), "as asked" if given else ""]
        rows.append(row)
    planned = ("alone in int8, dB", "agrees", "scheme", "why") if plan else ()
    return table(("layer", "int8 per channel, dB", "per tensor, dB", *planned), rows)


def trained(record: QatResult) -> Table:
    rows = [
        ("rounded", "–", percent(record.before_top1), percent(record.before_agreement), f"{record.before_sqnr_db:.1f}"),
        *((f"epoch {e.epoch}", f"{e.loss:.4f}", "", "", "") for e in record.epochs),
        ("trained", "–", percent(record.top1), percent(record.agreement), f"{record.sqnr_db:.1f}"),
    ]
    return table(("simulated int8", "loss", "top-1", "agrees", "SQNR, dB"), rows)


def artifacts(made: Sequence[Artifact], results: Sequence[BenchmarkResult] = ()) -> Table:
    """Size, accuracy and speed of each artifact beside the dense fp32 one of its format."""
    by_name = {result.artifact: result for result in results}
    dense = {a.format: a for a in made if a.model == "dense" and a.quant.scheme == "fp32"}
    rows = []
    for a in made:
        base, result = dense.get(a.format), by_name.get(a.path)
        reference = by_name.get(base.path) if base else None
        drop = f"{100 * (base.top1 - a.top1):+.2f}" if base and base is not a and base.top1 is not None and a.top1 is not None else "–"
        faster = f"{speed_up(reference, result):.2f}×" if reference and result and comparable(reference, result) is None else "–"
        latency = ms(median(result.latency_ms)) if result else "–"
        rows.append((a.path, size(a.size_bytes), percent(a.top1), drop, latency, faster, parity(a)))
    return table(("artifact", "size", "top-1", "drop", "median ms", "speed-up", "parity"), rows)


def parity(a: Artifact) -> str:
    """`max 2e-07 of range` for floats, agreement and SQNR for integers."""
    if a.parity is None:
        return "–"
    if a.quant.scheme == "fp32" or a.parity.top1_agreement is None:
        return f"max {a.parity.max_rel:.1e} of range"
    return f"agrees {a.parity.top1_agreement:.2%}, {a.parity.sqnr_db:.1f} dB"


def results(measured: Sequence[BenchmarkResult], *, compare: bool = False) -> Table:
    """Latencies of one `bench`; ratios against the first artifact measured in the same session, with their interval for `--compare`."""
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
            against if not compare else "–" if first is result else interval(ratio(result, first)),
            size(result.peak_rss_bytes),
            "noisy" if result.noisy else "",
        )
        rows.append(row)
    compared = f"ratio to the first, {CONFIDENCE:.0%} interval" if compare else "speed-up"
    return table(("artifact", "runtime", "threads", "median ms", "min–max", compared, "peak memory", "state"), rows, left=2)


def interval(found: Ratio) -> str:
    """0.512 [0.498, 0.526]."""
    return f"{found.ratio:.3f} " + (f"[{found.low:.3f}, {found.high:.3f}]" if found.low is not None else f"(no interval: {found.why})")


def profiles(measured: Sequence[BenchmarkResult]) -> Table:
    """The ten slowest ops of each artifact whose runtime told them."""
    rows = [
        (result.artifact, op.name, f"{op.calls:g}", ms(op.ms), f"{op.ms / max(1e-9, sum(each.ms for each in result.profile)):.1%}")
        for result in measured
        for op in result.profile[:10]
    ]
    return table(("artifact", "op", "calls", "ms", "share"), rows, left=2)


def remarks(measured: Sequence[BenchmarkResult]) -> list[str]:
    """Say once what makes results noisy and what runners noted, with the artifacts it is true of."""
    shared: dict[str, list[str]] = {}
    for result in measured:
        for text in (*(f"noisy: {why}" for why in result.noisy), *result.notes):
            shared.setdefault(text, []).append(result.artifact)
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in shared.items()]


def devices(found: Sequence[DeviceInfo]) -> Table:
    """What each device is; a column that no device fills is left out. Of the CPU's features those that runtimes have kernels for."""
    columns = {
        "device": [f"{d.name} {d.url}" for d in found],
        "state": [d.state for d in found],
        "model": [", ".join(dict.fromkeys(filter(None, (d.model, d.soc)))) for d in found],
        "cpu": [" ".join((d.abi, *(name for name in NOTABLE_CPU_FEATURES if name in d.cpu_features))) for d in found],
        "os": [d.os for d in found],
        "governor": [d.governor for d in found],
        "°C": ["" if d.temperature_c is None else f"{d.temperature_c:.0f}" for d in found],
        "free": ["" if d.free_bytes is None else size(d.free_bytes) for d in found],
        "labels": [", ".join(d.labels) for d in found],
    }
    shown = {heading: [one_line(cell) or "–" for cell in cells] for heading, cells in columns.items() if any(map(one_line, cells))}
    return table(tuple(shown), zip(*shown.values(), strict=True), left=2)


def problems(found: Sequence[DeviceInfo]) -> list[Text]:
    """A line for each device that cannot be used: they are sentences and would not fit into a column."""
    return [Text(one_line(f"{d.name}: {d.problem}" if d.name else d.problem)) for d in found if d.problem]


def one_line(text: str) -> str:
    """Words of a device on one line, with nothing in them that moves the cursor."""
    return sanitize(" ".join(text.split()))


def targets() -> Table:
    rows = [(name, ", ".join(f"{f} {s}" for f, s in t.outputs), str(t.rank_multiple), t.device) for name, t in TARGETS.items()]
    return table(("target", "artifacts", "rank multiple", "device"), rows, left=2)
