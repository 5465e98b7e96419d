"""The verdict of a report: one sentence, its figures, and the shortfalls a reader must know."""

import math

from edgecompress.records import CompressionPlan, DecomposeResult, FinetuneResult
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import ArtifactRow, Figure, Group, LayerTable, Verdict
from edgecompress.reporting.numbers import (
    describe_change,
    format_count,
    format_factor,
    format_ms,
    format_percent,
    format_points,
    format_ratio,
    format_size,
    format_whole,
)
from edgecompress.reporting.slower_in_int8 import list_slower_in_int8

MIN_NOTICED_LOSS_POINTS = 1.0  # A larger loss of top-1 must not be found in the table alone.
MAX_STEADY_SPREAD = 1.5  # A larger ratio of p90 to p10 means that something else ran or the clock changed.


def choose_headline(groups: tuple[Group, ...], unmeasured: tuple[ArtifactRow, ...]) -> tuple[ArtifactRow, Group | None] | None:
    """Return the artifact of the verdict: the fastest compressed one on the first group's device, else the smallest; None without any.

    Files of all formats are considered, since a device may run any of them; their times stand beside each other and give no ratio.
    """
    for only_compressed in (True, False):
        for place in dict.fromkeys((group.device.url, group.device.serial, group.threads) for group in groups):
            measured = [
                (row, group)
                for group in groups
                if (group.device.url, group.device.serial, group.threads) == place
                for row in group.rows
                if row.latency and not row.baseline and (row.model != "dense" or not only_compressed)
            ]
            if measured:
                return min(measured, key=lambda pair: (pair[0].latency.median_ms if pair[0].latency else math.inf, pair[0].size_bytes))
        rows = [row for row in unmeasured if not row.baseline and (row.model != "dense" or not only_compressed)]
        if rows:
            return min(rows, key=lambda row: row.size_bytes), None
    return None


def make_verdict(
    records: RunRecords,
    groups: tuple[Group, ...],
    unmeasured: tuple[ArtifactRow, ...],
    layers: LayerTable | None,
    *,
    left_out: tuple[str, ...],
) -> Verdict:
    """Return the verdict; every number in its sentence is also a figure.

    Args:
        left_out: Sentences about results that the report leaves out.
    """
    row, group = choose_headline(groups, unmeasured) or (None, None)
    figures = (
        make_size_figure(row),
        make_speed_figure(row, group),
        make_top1_figure(row, records.finetuned),
        make_macs_figure(layers),
    )
    shortfalls = (
        *(f"{file.path} was refused: {' '.join(file.reason.split())}" for file in records.refused),
        *list_plan_shortfalls(records.plan, records.decomposed),
        *list_accuracy_shortfalls(figures[2], records.finetuned, exported=row is not None),
        *list_row_shortfalls(groups, unmeasured),
        *list_slower_in_int8(groups),
        *list_group_shortfalls(groups),
        *left_out,
    )
    has_baseline = any(r.baseline for r in (*unmeasured, *(r for g in groups for r in g.rows)))
    return Verdict(
        sentence=write_sentence(row, group, figures, layers, records.plan, baseline=has_baseline),
        artifact=row.artifact if row else "",
        figures=figures,
        shortfalls=tuple(dict.fromkeys(shortfalls)),
    )


def make_size_figure(row: ArtifactRow | None) -> Figure:
    if row is None:
        return Figure(kind="size", reason="nothing exported yet")
    before = row.times_smaller * row.size_bytes if row.times_smaller is not None else None
    return Figure(kind="size", before=before, after=row.size_bytes, change=row.times_smaller, reason=row.size_reason)


def make_speed_figure(row: ArtifactRow | None, group: Group | None) -> Figure:
    if row is None:
        return Figure(kind="speed", reason="nothing exported yet")
    if row.latency is None or group is None:
        return Figure(kind="speed", reason="not measured on any device")
    before = row.speed_up * row.latency.median_ms if row.speed_up is not None else None
    return Figure(
        kind="speed", before=before, after=row.latency.median_ms, change=row.speed_up, reason=row.speed_reason or describe_group(group)
    )


def make_top1_figure(row: ArtifactRow | None, finetuned: FinetuneResult | None) -> Figure:
    """Return the change of top-1 of the file itself, or of the PyTorch model where the file's is unknown, and say which."""
    if row is not None and row.top1 is not None and row.top1_change_points is not None:
        before = row.top1 - row.top1_change_points / 100
        return Figure(
            kind="top1", before=before, after=row.top1, change=row.top1_change_points, reason=f"of the file itself{describe_samples(row)}"
        )
    if finetuned is not None and finetuned.dense_top1 is not None and finetuned.top1 is not None:
        change = 100 * (finetuned.top1 - finetuned.dense_top1)
        return Figure(
            kind="top1", before=finetuned.dense_top1, after=finetuned.top1, change=change, reason="of the PyTorch model before export"
        )
    if row is not None:
        return Figure(kind="top1", after=row.top1, reason=row.top1_reason)
    return Figure(kind="top1", reason="not measured")


def describe_samples(row: ArtifactRow) -> str:
    """Return e.g. `, on 5,000 samples`, the samples that a file was verified and scored on."""
    return f", on {format_whole(row.parity.samples)} samples" if row.parity else ""


def make_macs_figure(layers: LayerTable | None) -> Figure:
    if layers is None:
        return Figure(kind="macs", reason="layers were not analyzed")
    if not layers.planned:
        return Figure(kind="macs", before=layers.macs_before, reason="no plan yet")
    change = layers.macs / layers.macs_before if layers.macs_before else None
    reason = "" if layers.measured else "planned, not carried out"
    return Figure(kind="macs", before=layers.macs_before, after=layers.macs, change=change, reason=reason)


def describe_group(group: Group) -> str:
    """Return e.g. `Pixel 7 (emulated), 1 thread`."""
    device = group.device.model or group.device.url
    emulated = " (emulated)" if group.device.emulated else ""
    return f"{device}{emulated}, {group.threads} thread{'' if group.threads == 1 else 's'}"


def write_sentence(
    row: ArtifactRow | None,
    group: Group | None,
    figures: tuple[Figure, ...],
    layers: LayerTable | None,
    plan: CompressionPlan | None,
    *,
    baseline: bool,
) -> str:
    """Return the result of a run, or of an unfinished one its progress, as one sentence."""
    size, speed, top1, macs = figures
    if row is None:
        return write_sentence_of_unfinished_run(macs, layers, plan, baseline=baseline)
    against = "the dense fp32 file" if size.change is not None or speed.change is not None else ""
    changes = [describe_factor(size.change, "smaller", "larger"), describe_factor(speed.change, "faster", "slower")]
    said = " and ".join(change for change in changes if change)
    text = f"{row.artifact} is {said} than {against}" if said else f"{row.artifact} takes {format_size(row.size_bytes)}"
    if speed.change is None and speed.after is not None:
        place = f" on {describe_group(group)}" if group else ""
        text += f"; it takes {format_ms(speed.after)} ms{place}, which cannot be compared with the dense file"
    elif speed.change is None:
        text += "; its speed was not measured"
    else:
        text += f" on {describe_group(group)}" if group else ""
    if top1.change is not None:
        change = f"{format_percent(top1.before)} to {format_percent(top1.after)} ({format_points(top1.change)} points)"
        text += f"; top-1 went from {change}"
    else:
        text += "; the change of top-1 is not known"
    if macs.change is not None:
        text += ", with " + (f"{format_ratio(macs.change)} of the multiply-adds" if macs.change < 1 else "all of the multiply-adds")
    return text + "."


def write_sentence_of_unfinished_run(macs: Figure, layers: LayerTable | None, plan: CompressionPlan | None, *, baseline: bool) -> str:
    if layers is None:
        return "Only the dense baseline has been exported yet." if baseline else "Nothing has been compressed or measured yet."
    start = f"The network has {format_count(layers.params_before)} parameters and {format_count(layers.macs_before)} multiply-adds"
    if plan is None:
        return f"{start}; nothing has been compressed yet."
    if not plan.layers:
        return f"{start}; the plan leaves every layer as it is, and nothing has been exported yet."
    done = "decomposition leaves" if layers.measured else "plan would leave"
    return f"{start}; the {done} {format_ratio(macs.change)} of the multiply-adds, and no compressed file has been exported yet."


def describe_factor(change: float | None, better: str, worse: str) -> str:
    """Return `4.2× faster`, `1.3× slower`, `no faster`, or "" for an unknown change."""
    return " ".join(describe_change(change, better, worse)).strip() if change is not None and change > 0 else ""


def list_plan_shortfalls(plan: CompressionPlan | None, decomposed: DecomposeResult | None) -> list[str]:
    if plan is None:
        return []
    short = []
    reached = plan.macs / plan.macs_before if plan.macs_before else 1.0
    if not plan.layers:
        short.append("No layer was decomposed: the planner refused every candidate (reasons in the layer table).")
    elif plan.budget.macs_ratio is not None and reached > plan.budget.macs_ratio * 1.005:
        asked = format_ratio(plan.budget.macs_ratio)
        short.append(f"A MACs ratio of {asked} was asked for; the plan stops at {format_ratio(reached)}.")
    if decomposed is not None and decomposed.macs != plan.macs:
        short.append(f"The decomposed network has {format_count(decomposed.macs)} multiply-adds, the plan said {format_count(plan.macs)}.")
    return short


def list_accuracy_shortfalls(top1: Figure, finetuned: FinetuneResult | None, *, exported: bool) -> list[str]:
    short = []
    if top1.change is not None and -top1.change >= MIN_NOTICED_LOSS_POINTS:
        short.append(f"Top-1 fell by {format_points(-top1.change).lstrip('+')} points.")
    if exported and top1.change is None:
        short.append("The change of top-1 was not measured; look at parity only.")
    if finetuned is not None and any(
        epoch.epoch and not math.isfinite(math.nan if epoch.loss is None else epoch.loss) for epoch in finetuned.epochs
    ):
        short.append("The loss was not finite in some epochs of fine-tuning; lower the learning rate.")
    return short


def list_row_shortfalls(groups: tuple[Group, ...], unmeasured: tuple[ArtifactRow, ...]) -> list[str]:
    rows = [(row, group) for group in groups for row in group.rows]
    slower = [(row, group) for row, group in rows if row.speed_up is not None and row.speed_up < 1 and not row.baseline]
    short = [f"{r.artifact} is slower than the dense fp32 file on {describe_group(g)}: {format_factor(r.speed_up)}." for r, g in slower]
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
