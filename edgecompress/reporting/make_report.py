"""Build the `Report` from the records of a run: a pure function, for which any record may be missing."""

import math
import shlex

from edgecompress.devices.statistics import medians_of_repeats
from edgecompress.records import FinetuneResult, QuantizeResult
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.accuracies import make_accuracy_tables
from edgecompress.reporting.comparison import drop_repeated_groups, group_results
from edgecompress.reporting.compression import make_compression_proof
from edgecompress.reporting.conditions import list_conditions
from edgecompress.reporting.document import EpochPoint, MissingSection, Note, Quantization, Report, Training
from edgecompress.reporting.layers import make_layer_table
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
    groups, unmeasured, left_out = group_results(records.artifacts, records.results)
    groups, earlier = drop_repeated_groups(groups)
    accuracies, unknown = make_accuracy_tables(records.artifacts, records.evaluations)
    problems = (evaluation.problem for evaluation in records.evaluations if evaluation.problem)
    layers = make_layer_table(records)
    rows = {row.artifact: row for row in (*(row for group in groups for row in group.rows), *unmeasured)}
    models = (record.model for record in (records.stats, records.plan) if record is not None and record.model)
    return Report(
        title=next(models, run),
        created_at=created_at,
        version=version,
        verdict=make_verdict(records, groups, unmeasured, layers, left_out=(*left_out, *unknown, *problems)),
        groups=groups,
        unmeasured=unmeasured,
        accuracies=accuracies,
        compression=make_compression_proof(records, tuple(rows.values())),
        layers=layers,
        stages=make_stage_rows(records),
        training=make_training(records.finetuned),
        quantization=make_quantization(records.quantized),
        qat=records.qat,
        notes=(*collect_notes(records), *earlier),
        conditions=list_conditions(records, groups, created_at=created_at, version=version),
        refused=records.refused,
        missing=list_missing_sections(records, run),
    )


def make_training(finetuned: FinetuneResult | None) -> Training | None:
    if finetuned is None:
        return None
    points = tuple(
        EpochPoint(
            epoch=epoch.epoch,
            loss=epoch.loss if epoch.epoch and epoch.loss is not None and math.isfinite(epoch.loss) else None,
            value=finetuned.select_value(epoch.metrics, epoch.top1),
            divergence=epoch.divergence,
            kept=epoch.epoch == finetuned.best_epoch,
            learning_rate=epoch.learning_rate,
            seconds=epoch.seconds,
        )
        for epoch in finetuned.epochs
    )
    return Training(
        metric=finetuned.headline,
        dense=finetuned.dense_value,
        before=finetuned.start_value,
        after=finetuned.kept_value,
        epochs=points,
        train_samples=finetuned.train_samples,
        eval_samples=finetuned.eval_samples,
        data=finetuned.data,
        seed=finetuned.seed,
        validation=finetuned.validation,
        rate_reason=finetuned.rate_reason,
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


def collect_notes(records: RunRecords) -> tuple[Note, ...]:
    """Return the notes of all steps; a text that several artifacts or results share stands once."""
    plan, decomposed, finetuned = records.plan, records.decomposed, records.finetuned
    told = {plan.refusal} if plan else set()  # stands among the shortfalls
    found = [Note(source="analyze", text=text) for text in (records.stats.notes if records.stats else ())]
    found += [Note(source="plan", text=text) for text in (plan.notes if plan else ()) if text not in told]
    found += [Note(source="decompose", text=text) for text in (decomposed.notes if decomposed else ())]
    if finetuned and finetuned.note:
        found.append(Note(source="finetune", text=finetuned.note))
    shared: dict[str, list[str]] = {}
    for artifact in records.artifacts:
        for text in artifact.notes:
            shared.setdefault(text, []).append(artifact.path)
    for result in records.results:
        for text in result.notes:
            shared.setdefault(text, []).append(f"{result.artifact} on {result.device.model or result.device.url}")
    for name, medians in medians_of_repeats(records.results).items():
        lowest, highest = min(medians), max(medians)
        apart = f"{highest / lowest - 1:.0%} apart" if lowest > 0 else "below what the clock shows"
        text = f"{name} was measured in {len(medians)} sessions: medians from {lowest:.3g} to {highest:.3g} ms, {apart}."
        found.append(Note(source="bench", text=text))
    return (*found, *(Note(source=", ".join(names), text=text) for text, names in shared.items()))


def list_missing_sections(records: RunRecords, run: str) -> tuple[MissingSection, ...]:
    """Return the sections without data, in the order of the steps, each with the command that fills it."""
    data = {
        "analyze": records.stats,
        "plan": records.plan,
        "decompose": records.decomposed,
        "finetune": records.finetuned,
        "quantize": records.quantized,
        "export": records.artifacts,
        "bench": records.results,
    }
    return tuple(
        MissingSection(section=step, command=f"edgecompress {step} {shlex.quote(run)}") for step, found in data.items() if not found
    )
