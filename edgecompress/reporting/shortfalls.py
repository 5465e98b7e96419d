"""The shortfalls of a run: goals that were missed, files that were refused or are slower than expected, figures that were not measured."""

import math
from collections.abc import Iterator

from edgecompress.records import CompressionPlan, DecomposeResult, FinetuneResult
from edgecompress.records.artifact import Refusal, group_refusals
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.comparison import is_dense_int8
from edgecompress.reporting.document import ArtifactRow, Figure, Group
from edgecompress.reporting.figures import describe_group
from edgecompress.reporting.numbers import (
    describe_change,
    format_count,
    format_metric_change,
    format_ratio,
)
from edgecompress.reporting.slower_in_int8 import list_slower_in_int8

MIN_NOTICED_LOSS = 1.0  # A larger loss, in points of an accuracy or percent of another metric, must not be found in the table alone.
MAX_STEADY_SPREAD = 1.5  # A larger ratio of p90 to p10 means that something else ran or the clock changed.


def list_shortfalls(
    records: RunRecords,
    groups: tuple[Group, ...],
    unmeasured: tuple[ArtifactRow, ...],
    *,
    row: ArtifactRow | None,
    quality: Figure,
    left_out: tuple[str, ...],
) -> tuple[str, ...]:
    """Return each shortfall once, as a sentence.

    Args:
        row: The compressed file of the headline; None where none was exported.
        quality: What is left of the network as given.
        left_out: Sentences about results that the report leaves out.
    """
    found = (
        *(describe_refusal(group) for group in group_refusals(records.refused) if not group.for_comparison),
        *list_plan_shortfalls(records.plan, records.decomposed),
        *list_quality_shortfalls(quality, records.finetuned, row),
        *list_int8_shortfalls(records, row),
        *list_row_shortfalls(groups, unmeasured),
        *list_slower_in_int8(groups),
        *list_group_shortfalls(groups),
        *left_out,
    )
    return tuple(dict.fromkeys(found))


def describe_refusal(group: Refusal) -> str:
    """Return why files were refused as a sentence."""
    return f"{', '.join(group.paths)} {'was' if len(group.paths) == 1 else 'were'} refused: {group.cause}"


def list_plan_shortfalls(plan: CompressionPlan | None, decomposed: DecomposeResult | None) -> list[str]:
    if plan is None:
        return []
    short = []
    reached = plan.macs / plan.macs_before if plan.macs_before else 1.0
    if plan.refusal:
        short.append(f"The network would not survive the whole budget: {plan.refusal}.")
    elif not plan.layers:
        short.append("No layer was decomposed: the planner refused every candidate (reasons in the layer table).")
    elif plan.budget.macs_ratio is not None and reached > plan.budget.macs_ratio * 1.005:
        asked = format_ratio(plan.budget.macs_ratio)
        short.append(f"A MACs ratio of {asked} was asked for; the plan stops at {format_ratio(reached)}.")
    if decomposed is not None and decomposed.macs != plan.macs:
        short.append(f"The decomposed network has {format_count(decomposed.macs)} multiply-adds, the plan said {format_count(plan.macs)}.")
    return short


def list_quality_shortfalls(quality: Figure, finetuned: FinetuneResult | None, row: ArtifactRow | None) -> list[str]:
    short = []
    if quality.metric is not None and quality.change is not None and -quality.change >= MIN_NOTICED_LOSS:
        lost = format_metric_change(-quality.change, is_accuracy=quality.metric.is_accuracy).lstrip("+")
        short.append(
            f"{quality.name} fell by {lost} points." if quality.metric.is_accuracy else f"{quality.name} is {lost} worse than before."
        )
    if row is not None and row.metric is not None and row.change is None:
        short.append(f"The change of {row.metric.name} is not known: {row.metric_reason}.")
    if row is not None and quality.kind == "kept" and quality.after is None:
        short.append("What the files keep of the network as given was not measured; export them again.")
    losses = [epoch.loss for epoch in finetuned.epochs if epoch.epoch] if finetuned else []  # epoch 0 has none
    if any(loss is None or not math.isfinite(loss) for loss in losses):
        short.append("The loss was not finite in some epochs of fine-tuning; lower the learning rate.")
    return short


def list_int8_shortfalls(records: RunRecords, row: ArtifactRow | None) -> Iterator[str]:
    """Yield why the report does not show what factorizing adds to quantization, where it does not.

    Args:
        row: The compressed file of the headline.
    """
    refused = [file for file in records.refused if file.for_comparison]
    for file in refused:
        yield (
            f"{file.path}, the network as given made only to compare with, was refused, so what quantization alone gives is not known: "
            f"{file.cause}"
        )
    if row is None or row.model == "dense" or refused or row.int8_speed_up is not None:
        return
    made = [artifact.path for artifact in records.artifacts if is_dense_int8(artifact)]
    if not made:
        yield "The network as given was not exported in int8, so what quantization alone gives is not known."
    elif row.latency is not None:
        yield f"{made[0]} was not measured beside {row.artifact}, so what factorizing adds to quantization is not known."


def list_row_shortfalls(groups: tuple[Group, ...], unmeasured: tuple[ArtifactRow, ...]) -> list[str]:
    rows = [(row, group) for group in groups for row in group.rows]
    short = []
    for row, group in rows:
        if row.slower_than:
            factor = row.int8_speed_up if row.slower_than == row.int8_baseline else row.speed_up
            times = describe_change(factor, "faster", "slower")[0] if factor else ""
            short.append(f"{row.artifact} is {times} slower than {row.slower_than} on {describe_group(group)}.")
    everything = [*(row for row, _ in rows), *unmeasured]
    short += [
        f"{row.artifact} is larger than the dense fp32 file."
        for row in everything
        if row.times_smaller is not None and row.times_smaller < 1
    ]
    short += [f"{row.artifact} was not verified against the model." for row in everything if row.parity is None]
    if unmeasured:
        short.append(f"Speed not measured: {', '.join(row.artifact for row in unmeasured)}.")
    return short


def list_group_shortfalls(groups: tuple[Group, ...]) -> list[str]:
    short = []
    for group in groups:
        place = describe_group(group)
        if group.device.emulated:
            short.append(f"{place}: an emulated device shows that the file runs; its times say nothing about a real one.")
        cores, load = group.device.cores, group.load_average[0]
        if cores is not None and load is not None and load > max(cores - group.threads, 0.5):
            short.append(f"{place}: busy while measuring (load {load:.1f} on {cores} cores); times are too long and unsteady.")
        unsteady = [row.artifact for row in group.rows if row.latency and row.latency.p90_ms > MAX_STEADY_SPREAD * row.latency.p10_ms]
        if unsteady:
            short.append(f"{place}: unsteady times (p90 over {MAX_STEADY_SPREAD}× p10) of {', '.join(unsteady)}.")
    if groups and all(group.device.emulated or group.device.url.startswith("local") for group in groups):
        short.append("Not measured on a real phone or board: every time here is from this computer or from an emulator.")
    return short
