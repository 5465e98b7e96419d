"""The table of layers: costs before and after, errors and latencies as planned and as reached."""

from collections import Counter

from edgecompress.devices.statistics import median
from edgecompress.planning.latency_tables.table import describe_conditions, table_for_result
from edgecompress.records import CompressionPlan, LayerPlan, LayerStats, SkippedLayer
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import LayerRow, LayerTable


def make_layer_table(records: RunRecords) -> LayerTable | None:
    """Return every layer in the order of the network, or of the plan where nothing was analyzed; None without both."""
    stats, plan, decomposed = records.stats, records.plan, records.decomposed
    if stats is None and plan is None:
        return None
    found = {layer.name: layer for layer in stats.layers} if stats else {}
    chosen = {layer.layer: layer for layer in plan.layers} if plan else {}
    skipped = {layer.layer: layer for layer in plan.skipped} if plan else {}
    errors = decomposed.relative_errors if decomposed else {}
    timed = plan is not None and plan.latency_ms is not None
    names = dict.fromkeys((*found, *chosen, *skipped))
    macs_before = plan.macs_before if plan else stats.macs if stats else 0
    params_before = plan.params_before if plan else stats.params if stats else 0
    return LayerTable(
        layers=tuple(_make_row(n, found.get(n), chosen.get(n), skipped.get(n), error=errors.get(n), timed=timed) for n in names),
        macs_before=macs_before,
        macs=decomposed.macs if decomposed else plan.macs if plan else macs_before,
        params_before=params_before,
        params=decomposed.params if decomposed else plan.params if plan else params_before,
        macs_ratio_asked=plan.budget.macs_ratio if plan else None,
        timed_on=f"{plan.scheme} on {plan.measured_on}" if plan and timed else "",
        latency_ms_before=plan.latency_ms_before if plan else None,
        predicted_ms=plan.latency_ms if plan else None,
        measured_ms=find_measured_ms(records),
        common_why=find_common_reason(plan),
        planned=plan is not None,
        measured=decomposed is not None,
    )


def find_measured_ms(records: RunRecords) -> float | None:
    """Return the newest median, in ms, of the compressed TFLite file in the plan's scheme, measured where the plan's latencies were."""
    plan = records.plan
    if plan is None or plan.latency_ms is None:
        return None
    files = {a.sha256 for a in records.artifacts if (a.model, a.format, a.quant.scheme) == ("compressed", "tflite", plan.scheme)}
    there = [r for r in records.results if r.artifact_sha256 in files and describe_conditions(table_for_result(r)) == plan.measured_on]
    return median(max(there, key=lambda r: r.started_at).latency_ms) if there else None


def find_common_reason(plan: CompressionPlan | None) -> str:
    """Return the reason that most decomposed layers share, which the table then states once; "" without such a reason."""
    reasons = Counter(layer.why for layer in plan.layers) if plan else Counter[str]()
    reason, number = max(reasons.items(), key=lambda pair: pair[1], default=("", 0))
    return reason if number > 2 and number > sum(reasons.values()) / 2 else ""


def _make_row(
    name: str, layer: LayerStats | None, chosen: LayerPlan | None, skipped: SkippedLayer | None, *, error: float | None, timed: bool
) -> LayerRow:
    """Return the row of a layer from its statistics and the planner's decision.

    Args:
        error: Relative error of the factors, None before decomposition.
        timed: Whether the plan has latencies, which then take the place of those in PyTorch.
    """
    macs = layer.macs if layer else chosen.macs_before if chosen else skipped.macs if skipped else 0
    params = layer.params if layer else chosen.params_before if chosen else None
    planned_dense_ms = chosen.latency_ms_before if chosen else skipped.latency_ms if skipped else None
    return LayerRow(
        name=name,
        kind=layer.kind if layer else "",
        shape=layer.weight_shape if layer else (),
        macs_before=chosen.macs_before if chosen else macs,
        macs=chosen.macs if chosen else macs,
        params_before=params,
        params=chosen.params if chosen else params,
        method=chosen.form if chosen else "",
        rank=chosen.rank if chosen else (),
        planned_error=chosen.relative_error if chosen else None,
        relative_error=error,
        loss_increase=chosen.loss_increase if chosen else None,
        latency_ms=planned_dense_ms if timed else layer.latency_ms if layer else None,
        planned_ms=chosen.latency_ms if chosen else None,
        skipped=skipped is not None,
        why=chosen.why if chosen else skipped.reason if skipped else "",
        alternatives=chosen.alternatives if chosen else (),
    )
