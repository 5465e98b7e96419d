"""Build the `Report` from the records of a run: a pure function, for which any record may be missing."""

import math
import shlex
from collections import Counter

from edgecompress.devices.statistics import medians_of_repeats
from edgecompress.records import (
    Artifact,
    BenchmarkResult,
    CompressionPlan,
    DecomposeResult,
    FinetuneResult,
    LayerPlan,
    ModelStats,
    QuantizeResult,
    SkippedLayer,
)
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.accuracies import make_accuracy_tables
from edgecompress.reporting.comparison import drop_repeated_groups, group_results
from edgecompress.reporting.conditions import list_conditions
from edgecompress.reporting.document import EpochPoint, LayerRow, LayerTable, MissingSection, Note, Quantization, Report, Training
from edgecompress.reporting.predictions import find_measured_ms
from edgecompress.reporting.stages import make_stage_rows
from edgecompress.reporting.verdict import make_verdict
from edgecompress.targets import SCHEMES


def make_report(records: RunRecords, *, run: str, created_at: str, version: str) -> Report:
    """Return the report of a run's records.

    Args:
        run: The run folder as a person would type it; it stands in the commands that fill what is missing.
        created_at: Date and time, ISO 8601.
        version: Of edgecompress.
    """
    stats, plan, decomposed, finetuned, quantized = records.stats, records.plan, records.decomposed, records.finetuned, records.quantized
    artifacts, results = records.artifacts, records.results
    groups, unmeasured, left_out = group_results(artifacts, results)
    groups, earlier = drop_repeated_groups(groups)
    scored, unknown = make_accuracy_tables(artifacts, records.evaluations)
    left_out += (*unknown, *(evaluation.problem for evaluation in records.evaluations if evaluation.problem))
    layers = make_layer_table(stats, plan, decomposed, find_measured_ms(plan, artifacts, results))
    return Report(
        title=next((record.model for record in (stats, plan) if record is not None and record.model), run),
        created_at=created_at,
        version=version,
        verdict=make_verdict(
            groups,
            unmeasured,
            layers,
            plan=plan,
            decomposed=decomposed,
            finetuned=finetuned,
            refused=records.refused,
            left_out=left_out,
        ),
        groups=groups,
        unmeasured=unmeasured,
        accuracies=scored,
        layers=layers,
        stages=make_stage_rows(records.stages, plan, decomposed, finetuned),
        training=make_training(finetuned),
        quantization=make_quantization(quantized),
        qat=records.qat,
        notes=(*collect_notes(plan, decomposed, finetuned, artifacts, results), *earlier),
        conditions=list_conditions(
            stats=stats,
            plan=plan,
            finetuned=finetuned,
            quantized=quantized,
            artifacts=artifacts,
            groups=groups,
            created_at=created_at,
            version=version,
        ),
        refused=records.refused,
        missing=list_missing_sections(run, stats, plan, decomposed, finetuned, quantized, artifacts, results),
    )


def make_layer_table(
    stats: ModelStats | None,
    plan: CompressionPlan | None,
    decomposed: DecomposeResult | None,
    measured_ms: float | None = None,
) -> LayerTable | None:
    """Return every layer in the order of the network, or of the plan where nothing was analyzed; None without both."""
    if stats is None and plan is None:
        return None
    found = {layer.name: layer for layer in stats.layers} if stats else {}
    timed = plan is not None and plan.latency_ms is not None
    chosen = {layer.layer: layer for layer in plan.layers} if plan else {}
    skipped = {layer.layer: layer for layer in plan.skipped} if plan else {}
    errors = decomposed.relative_errors if decomposed else {}
    layers = []
    for name in dict.fromkeys((*found, *chosen, *skipped)):
        was, now, left = found.get(name), chosen.get(name), skipped.get(name)
        before = was.macs if was else now.macs_before if now else left.macs if left else 0
        params_before = was.params if was else now.params_before if now else None
        layers.append(
            LayerRow(
                name=name,
                kind=was.kind if was else "",
                shape=was.weight_shape if was else (),
                macs_before=now.macs_before if now else before,
                macs=now.macs if now else before,
                params_before=params_before,
                params=now.params if now else params_before,
                method=now.form if now else "",
                rank=now.rank if now else (),
                planned_error=now.relative_error if now else None,
                relative_error=errors.get(name),
                loss_increase=now.loss_increase if now else None,
                latency_ms=_find_dense_ms(now, left) if timed else was.latency_ms if was else None,
                planned_ms=now.latency_ms if now else None,
                skipped=left is not None,
                why=now.why if now else left.reason if left else "",
                alternatives=now.alternatives if now else (),
            )
        )
    macs_before = plan.macs_before if plan else stats.macs if stats else 0
    params_before = plan.params_before if plan else stats.params if stats else 0
    return LayerTable(
        layers=tuple(layers),
        macs_before=macs_before,
        macs=decomposed.macs if decomposed else plan.macs if plan else macs_before,
        params_before=params_before,
        params=decomposed.params if decomposed else plan.params if plan else params_before,
        macs_ratio_asked=plan.budget.macs_ratio if plan else None,
        timed_on=f"{plan.scheme} on {plan.measured_on}" if plan and timed else "",
        latency_ms_before=plan.latency_ms_before if plan else None,
        predicted_ms=plan.latency_ms if plan else None,
        measured_ms=measured_ms,
        common_why=find_common_reason(plan),
        planned=plan is not None,
        measured=decomposed is not None,
    )


def _find_dense_ms(now: LayerPlan | None, left: SkippedLayer | None) -> float | None:
    return now.latency_ms_before if now else left.latency_ms if left else None


def find_common_reason(plan: CompressionPlan | None) -> str:
    """Return the reason that most decomposed layers share, which the table then states once; "" without such a reason."""
    reasons = Counter(layer.why for layer in plan.layers) if plan else Counter[str]()
    reason, number = max(reasons.items(), key=lambda pair: pair[1], default=("", 0))
    return reason if number > 2 and number > sum(reasons.values()) / 2 else ""


def make_training(finetuned: FinetuneResult | None) -> Training | None:
    if finetuned is None:
        return None
    points = tuple(
        EpochPoint(
            epoch=epoch.epoch,
            loss=epoch.loss if math.isfinite(epoch.loss) else None,
            top1=epoch.top1,
            learning_rate=epoch.learning_rate,
            seconds=epoch.seconds,
        )
        for epoch in finetuned.epochs
    )
    return Training(
        dense_top1=finetuned.dense_top1,
        before_top1=finetuned.before_top1,
        top1=finetuned.top1,
        epochs=points,
        train_samples=finetuned.train_samples,
        eval_samples=finetuned.eval_samples,
        data=finetuned.data,
        seed=finetuned.seed,
    )


def make_quantization(quantized: QuantizeResult | None) -> Quantization | None:
    if quantized is None:
        return None
    return Quantization(
        schemes=tuple(
            f"{spec.scheme}, {'per channel' if spec.per_channel else 'per tensor'}, {spec.calibration_samples} calibration samples"
            if SCHEMES[spec.scheme].calibrated
            else spec.scheme
            for spec in quantized.specs
        ),
        calibration_data=quantized.calibration_data,
        input_range=quantized.input_range,
        layers=quantized.layers,
        precision=quantized.precision,
    )


def collect_notes(
    plan: CompressionPlan | None,
    decomposed: DecomposeResult | None,
    finetuned: FinetuneResult | None,
    artifacts: tuple[Artifact, ...],
    results: tuple[BenchmarkResult, ...],
) -> tuple[Note, ...]:
    """Return the notes of all steps; a text that several artifacts or results share stands once."""
    found = [Note(source="plan", text=text) for text in (plan.notes if plan else ())]
    found += [Note(source="decompose", text=text) for text in (decomposed.notes if decomposed else ())]
    if finetuned and finetuned.note:
        found.append(Note(source="finetune", text=finetuned.note))
    shared: dict[str, list[str]] = {}
    for artifact in artifacts:
        for text in artifact.notes:
            shared.setdefault(text, []).append(artifact.name)
    for result in results:
        for text in result.notes:
            shared.setdefault(text, []).append(f"{result.artifact} on {result.device.model or result.device.url}")
    for name, medians in medians_of_repeats(results).items():
        lowest, highest = min(medians), max(medians)
        apart = f"{highest / lowest - 1:.0%} apart" if lowest > 0 else "below what the clock shows"
        text = f"{name} was measured in {len(medians)} sessions: medians from {lowest:.3g} to {highest:.3g} ms, {apart}."
        found.append(Note(source="bench", text=text))
    return (*found, *(Note(source=", ".join(names), text=text) for text, names in shared.items()))


def list_missing_sections(run: str, *records: object) -> tuple[MissingSection, ...]:
    """Return the sections without data, in the order of the steps, each with the command that fills it."""
    steps = ("analyze", "plan", "decompose", "finetune", "quantize", "export", "bench")
    where = shlex.quote(run)
    return tuple(
        MissingSection(section=step, command=f"edgecompress {step} {where}")
        for step, record in zip(steps, records, strict=True)
        if not record
    )
