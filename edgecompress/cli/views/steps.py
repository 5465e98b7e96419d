"""Views of the steps of a run: the table that a command prints, and the line that reports a finished step."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from rich.table import Table

from edgecompress.cli.views.artifacts import tabulate_artifacts
from edgecompress.cli.views.tables import make_table
from edgecompress.records import (
    CompressionPlan,
    CostTable,
    DecomposeResult,
    ExportResult,
    FinetuneResult,
    ModelStats,
    QatResult,
    QuantizeResult,
    Record,
)
from edgecompress.records.metrics import metric_loss
from edgecompress.reporting.numbers import (
    UNKNOWN,
    format_count,
    format_db,
    format_error,
    format_factor,
    format_loss_change,
    format_metric,
    format_metric_change,
    format_ms,
    format_percent,
    format_ratio,
    format_seconds,
    format_shape,
    format_share,
    format_significant,
    format_size,
)
from edgecompress.reporting.quality import describe_kept


def tabulate_stats(record: ModelStats) -> Table:
    """Return parameters, MACs and latency of each layer."""
    rows = [
        (
            layer.name,
            layer.kind,
            format_shape(layer.weight_shape),
            format_shape(layer.output_shape),
            format_count(layer.params),
            format_count(layer.macs),
            format_share(layer.macs / max(1, record.macs)),
            format_size(layer.activation_bytes),
            format_ms(layer.latency_ms),
        )
        for layer in record.layers
    ]
    if record.other_macs:
        other = sum(record.other_macs.values())
        rows.append(("weights of no layer", "", "", "", "", format_count(other), format_share(other / max(1, record.macs)), "", ""))
    rows.append(("total", "", "", "", format_count(record.params), format_count(record.macs), "", "", format_ms(record.latency_ms)))
    return make_table(("layer", "kind", "weight", "output", "params", "MACs", "share", "activations", "ms"), rows, text_columns=2)


def list_outputs(record: ModelStats) -> Iterator[str]:
    """Yield the kind of each output, by which it is judged and trained, and where that was read; its notes stand below the probe."""
    for spec in record.outputs:
        yield f"output {spec.name}: {spec.kind}{f' ({spec.source})' if spec.source else ''}"


def list_plan_notes(record: CompressionPlan) -> Iterator[str]:
    """Yield why less was saved than was asked for."""
    if record.refusal:
        yield f"taken back: {record.refusal}"


def list_proofs(record: ExportResult) -> Iterator[str]:
    """Yield what compression cost the network itself: its metric, and how much every output keeps."""
    found = record.compression
    if found is None:
        return
    if spec := found.metric:
        before, after = (format_metric(values[spec.name], is_accuracy=spec.is_accuracy) for values in (found.dense_metrics, found.metrics))
        lost = -metric_loss(spec, found.dense_metrics, found.metrics)
        change = format_metric_change(lost, is_accuracy=spec.is_accuracy) + (" points" if spec.is_accuracy else "")
        yield f"of the network as given the compressed one keeps: {spec.name} {before} → {after} ({change})"
    for each in found.fidelity.outputs:
        yield f"of the network as given the compressed one keeps {describe_kept(each)}"


def tabulate_plan(record: CompressionPlan) -> Table:
    """Return each layer's form and cost, with the reason why it was chosen and why others were not."""
    timed = record.latency_ms is not None
    rows = [
        (
            step.layer,
            step.form,
            format_shape(step.rank),
            f"{format_count(step.macs_before)} → {format_count(step.macs)}",
            format_ratio(step.macs / max(1, step.macs_before)),
            *([f"{format_ms(step.latency_ms_before)} → {format_ms(step.latency_ms)}"] if timed else []),
            format_error(step.relative_error),
            format_loss_change(step.loss_increase),
            "; ".join((step.why, *step.alternatives)),
        )
        for step in record.layers
    ]
    rows += [
        (s.layer, "dense", UNKNOWN, format_count(s.macs), "1.00", *([format_ms(s.latency_ms)] if timed else []), UNKNOWN, UNKNOWN, s.reason)
        for s in record.skipped
    ]
    total = f"{format_count(record.macs_before)} → {format_count(record.macs)}"
    times = [f"{format_ms(record.latency_ms_before)} → {format_ms(record.latency_ms)}"] if timed else []
    notes = (f"{record.scheme} on {record.measured_on}: {_predict_speedup(record)}",) if timed else ()
    why = "; ".join((*notes, *record.notes))
    rows.append(("total", "", "", total, format_ratio(record.macs / max(1, record.macs_before)), *times, "", "", why))
    return make_table(("layer", "form", "rank", "MACs", "ratio", *(["ms"] if timed else []), "error", "loss", "why"), rows, text_columns=2)


def _predict_speedup(record: CompressionPlan) -> str:
    before, after = record.latency_ms_before or 0.0, record.latency_ms or 0.0
    return f"{format_factor(before / after)} as fast as dense, predicted" if after > 0 else "no time is left, predicted"


def tabulate_latencies(record: CostTable, network: ModelStats) -> Table:
    """Return the latency of each layer shape and scheme: dense, its number of forms, those slower than dense, and the fastest."""
    schemes = list(dict.fromkeys(s for forms in record.layers.values() for costs in forms.values() for s in costs))
    rows = []
    for geometry, forms in record.layers.items():
        for scheme in schemes:
            dense = forms["dense"].get(scheme) if "dense" in forms else None
            others = sorted((costs[scheme].ms, form) for form, costs in forms.items() if form != "dense" and scheme in costs)
            slower = sum(1 for value, _ in others if dense and value >= dense.ms)
            fastest = f"{others[0][1]} {format_ms(others[0][0])}" if others else UNKNOWN
            rows.append((geometry, scheme, format_ms(dense.ms) if dense else UNKNOWN, str(len(others)), str(slower), fastest))
    for measured in record.networks.values():
        rows += [(f"{network.model} whole, dense", scheme, format_ms(cost.ms), "", "", "") for scheme, cost in measured.items()]
    return make_table(("layer", "scheme", "dense ms", "forms", "slower than dense", "fastest"), rows, text_columns=2)


def tabulate_errors(record: DecomposeResult) -> Table:
    """Return the relative error of each decomposed layer."""
    return make_table(("layer", "relative error"), [(name, format_error(error)) for name, error in record.relative_errors.items()])


def tabulate_epochs(record: FinetuneResult) -> Table:
    """Return the loss, the headline of the metric and the divergence from the dense network after each epoch of fine-tuning."""
    spec, name = record.headline, _name_headline(record)

    def format_headline(top1: float | None, metrics: dict[str, float]) -> str:
        if spec is None:
            return format_significant(metrics.get(name))
        return format_metric(record.select_value(metrics, top1), is_accuracy=spec.is_accuracy)

    rows = [
        (
            f"{'before training' if e.epoch == 0 else e.epoch}{' (kept)' if e.epoch == record.best_epoch else ''}",
            format_significant(e.loss) if e.epoch else UNKNOWN,
            format_headline(e.top1, e.metrics),
            format_significant(e.divergence),
            format_seconds(e.seconds),
        )
        for e in record.epochs
    ]
    dense = ("dense", UNKNOWN, format_headline(record.dense_top1, record.dense_metrics), UNKNOWN, UNKNOWN)
    return make_table(("epoch", "loss", name, "validation divergence", "s"), [dense, *rows])


def tabulate_quantization(record: QuantizeResult) -> Table:
    """Return the SQNR of each layer's weight in int8; with mixed precision also that of the network with only this layer in int8."""
    plan, rows = record.precision, []
    chosen = {choice.layer: choice for choice in plan.layers} if plan else {}
    for layer in record.layers:
        row = [layer.layer, format_db(layer.per_channel_sqnr_db), format_db(layer.per_tensor_sqnr_db)]
        if one := chosen.get(layer.layer):
            row += [format_db(one.alone_sqnr_db), format_percent(one.alone_agreement), one.scheme, one.why]
        elif plan:
            given = [scheme for name, scheme in sorted(plan.by_hand.items()) if f"{layer.layer}.".startswith(f"{name}.")]
            row += [UNKNOWN, UNKNOWN, *(given[-1:] or [plan.scheme]), "as asked" if given else ""]
        rows.append(row)
    planned = ("alone in int8, dB", "agrees", "scheme", "why") if plan else ()
    return make_table(("layer", "int8 per channel, dB", "per tensor, dB", *planned), rows)


def tabulate_qat(record: QatResult) -> Table:
    """Return the accuracy in simulated int8 before and after training."""
    rows = [
        ("rounded", UNKNOWN, format_percent(record.before_top1), format_percent(record.before_agreement), format_db(record.before_sqnr_db)),
        *(
            (f"epoch {e.epoch}{' (kept)' if e.epoch == record.best_epoch else ''}", format_significant(e.loss), "", "", "")
            for e in record.epochs
            if e.epoch
        ),
        ("trained", UNKNOWN, format_percent(record.top1), format_percent(record.agreement), format_db(record.sqnr_db)),
    ]
    return make_table(("simulated int8", "loss", "top-1", "agrees", "SQNR, dB"), rows)


def _summarize_analysis(stats: ModelStats) -> str:
    return f"{format_count(stats.params)} params, {format_count(stats.macs)} MACs, {len(stats.layers)} layers"


def _summarize_plan(plan: CompressionPlan) -> str:
    ratio = plan.macs / max(1, plan.macs_before)
    faster = (
        f", {format_factor(plan.latency_ms_before / plan.latency_ms)} as fast predicted"
        if plan.latency_ms and plan.latency_ms_before
        else ""
    )
    note = f"; {plan.notes[-1]}" if plan.notes and not plan.refusal else ""
    return f"macs {format_ratio(ratio)}{faster}, {len(plan.layers)} layers factorized, {len(plan.skipped)} left dense{note}"


def _summarize_decomposition(result: DecomposeResult) -> str:
    return f"mean relative error {format_error(result.mean_relative_error)}" if result.relative_errors else "nothing to decompose"


def _summarize_finetuning(result: FinetuneResult) -> str:
    trained = len(result.epochs) - 1
    kept = f", epoch {result.best_epoch} is kept" if result.best_epoch and result.best_epoch < trained else ""
    kept += f"; {result.note}" if result.note else ""
    if (spec := result.headline) is not None and result.kept_value is not None:
        before, after, dense = (
            format_metric(v, is_accuracy=spec.is_accuracy) for v in (result.start_value, result.kept_value, result.dense_value)
        )
    elif (name := _name_headline(result)) in result.metrics:
        before, after, dense = (format_significant(m.get(name)) for m in (result.before_metrics, result.metrics, result.dense_metrics))
    else:
        return f"{trained} epochs, no labels to score on{kept}"
    return f"{_name_headline(result)} {before} → {after} (dense {dense}), {trained} epochs{kept}"


def _name_headline(result: FinetuneResult) -> str:
    """Return the name of the metric, or of the divergence that stands for it where there is none."""
    return result.headline.name if result.headline else next(iter(result.dense_metrics), "divergence")


def _summarize_quantization(result: QuantizeResult) -> str:
    samples = max((spec.calibration_samples for spec in result.specs), default=0)
    kept = f"; {len(result.precision.schemes)} layers in other schemes" if result.precision else ""
    return f"{', '.join(spec.scheme for spec in result.specs)}; {samples} calibration inputs{kept}"


def _summarize_qat(result: QatResult) -> str:
    top1 = f"top-1 {format_percent(result.before_top1)} → {format_percent(result.top1)}, " if result.top1 is not None else ""
    agrees = (
        f"agrees {format_percent(result.before_agreement)} → {format_percent(result.agreement)}, " if result.agreement is not None else ""
    )
    note = f"; {result.note}" if result.note else ""
    return f"simulated {result.scheme}: {top1}{agrees}{format_db(result.before_sqnr_db)} → {format_db(result.sqnr_db)} dB{note}"


def _summarize_export(result: ExportResult) -> str:
    asked = sum(not refused.for_comparison for refused in result.refused)
    compressed = sum(artifact.model == "compressed" for artifact in result.artifacts)
    dense = len(result.artifacts) - compressed
    parts = [
        f"{compressed} compressed files, each is what was compressed" if compressed else "no compressed file",
        f"{dense} of the network as given" if dense else "",
        f"{asked} refused" if asked else "",
    ]
    return "; ".join(filter(None, parts))


def _list_nothing(_: Record) -> Iterator[str]:
    return iter(())


class StepView(NamedTuple):
    """How a step is shown.

    Attributes:
        tabulate: The output of its command.
        summarize: The line after the step is done.
        explain: Short lines below that one, each with one fact.
    """

    tabulate: Callable[[Any], Table]
    summarize: Callable[[Any], str]
    explain: Callable[[Any], Iterable[str]] = _list_nothing


STEP_VIEWS: Final = {
    "analyze": StepView(tabulate_stats, _summarize_analysis, list_outputs),
    "plan": StepView(tabulate_plan, _summarize_plan, list_plan_notes),
    "decompose": StepView(tabulate_errors, _summarize_decomposition, lambda record: record.notes),
    "finetune": StepView(tabulate_epochs, _summarize_finetuning),
    "quantize": StepView(tabulate_quantization, _summarize_quantization),
    "qat": StepView(tabulate_qat, _summarize_qat),
    "export": StepView(lambda result: tabulate_artifacts(result.artifacts), _summarize_export, list_proofs),
}
