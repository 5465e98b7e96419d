"""The verdict of a report: one sentence, its figures, both proofs, and the shortfalls a reader must know."""

import math
from typing import NamedTuple

from edgecompress.records import CompressionPlan
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.comparison import is_faster
from edgecompress.reporting.document import ArtifactRow, Figure, Group, LayerTable, Verdict
from edgecompress.reporting.figures import (
    NOISY,
    NOT_EXPORTED,
    describe_group,
    has_noisy_times,
    make_int8_figure,
    make_macs_figure,
    make_quality_figure,
    make_size_figure,
    make_speed_figure,
)
from edgecompress.reporting.numbers import (
    describe_change,
    format_count,
    format_metric,
    format_metric_change,
    format_ms,
    format_ratio,
    format_share,
    format_size,
)
from edgecompress.reporting.quality import explain_compression, explain_conversion
from edgecompress.reporting.shortfalls import list_shortfalls


class Headline(NamedTuple):
    """The file of the verdict, and the group in which it was measured.

    Attributes:
        compressed: The fastest compressed file; another one than `row` where the dense file in integers is as fast.
    """

    row: ArtifactRow
    group: Group | None
    compressed: ArtifactRow

    @property
    def recommends_dense(self) -> bool:
        return self.row is not self.compressed


def choose_headline(groups: tuple[Group, ...], unmeasured: tuple[ArtifactRow, ...]) -> Headline | None:
    """Return the file of the verdict, None without any.

    That is the fastest compressed one on the first group's device, else the smallest. Files of all formats are considered, since a device
    may run any of them; their times stand beside each other and give no ratio. A dense file in integers takes its place where the
    compressed one is not faster in the same session: the network as given is then the safer choice.
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
                row, group = min(measured, key=lambda pair: (_median_ms(pair[0]), pair[0].size_bytes))
                return Headline(_prefer_dense(row, group), group, row)
        rows = [row for row in unmeasured if not row.baseline and (row.model != "dense" or not only_compressed)]
        if rows:
            smallest = min(rows, key=lambda row: row.size_bytes)
            return Headline(smallest, None, smallest)
    return None


def _median_ms(row: ArtifactRow) -> float:
    return row.latency.median_ms if row.latency else math.inf


def _prefer_dense(row: ArtifactRow, group: Group) -> ArtifactRow:
    """Return the dense file in integers where `row`, of the same session, is not faster; else `row`."""
    if row.int8_speed_up is None or is_faster(row.int8_speed_up, row.int8_interval):
        return row
    return next((other for other in group.rows if other.artifact == row.int8_baseline), row)


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
    found = choose_headline(groups, unmeasured)
    row, group = (found.row, found.group) if found else (None, None)
    compressed = found.compressed if found else None
    int8 = make_int8_figure(compressed, group)
    reason = "every compressed file was refused" if any(not file.for_comparison for file in records.refused) else NOT_EXPORTED
    size, speed = make_size_figure(row, reason=reason), make_speed_figure(row, group, reason=reason)
    quality = make_quality_figure(row, records)
    macs = make_macs_figure(layers, dense=row is not None and row.model == "dense")
    sentence = (
        write_sentence(found, size, speed, int8, quality, macs)
        if found
        else write_sentence_of_unfinished_run(macs, layers, records.plan, records=records)
    )
    return Verdict(
        sentence=sentence,
        artifact=row.artifact if row else "",
        figures=(size, speed, *((int8,) if int8 else ()), quality, macs),
        shortfalls=list_shortfalls(records, groups, unmeasured, row=compressed, quality=quality, left_out=left_out),
        proofs=(explain_conversion(row.parity, row.scheme), explain_compression(row.fidelity, bounded=row.metric is None)) if row else (),
    )


def write_sentence(found: Headline, size: Figure, speed: Figure, int8: Figure | None, quality: Figure, macs: Figure) -> str:
    """Return the result of a run as one sentence, or as two where the dense file in integers is recommended."""
    row, group = found.row, found.group
    place = f" on {describe_group(group)}{NOISY if has_noisy_times(row, group) else ''}" if group else ""
    changes = [describe_factor(size.change, "smaller", "larger"), describe_factor(speed.change, "faster", "slower")]
    said = " and ".join(change for change in changes if change)
    text = f"{row.artifact} is {said} than the dense fp32 file" if said else f"{row.artifact} takes {format_size(row.size_bytes)}"
    if int8 is not None and not found.recommends_dense:
        text += f", and {describe_factor(int8.change, 'faster', 'slower')} than the dense {_scheme_of(int8.name, group)} file"
    if speed.change is None and speed.after is not None:
        text += f"; it takes {format_ms(speed.after)} ms{place}, which cannot be compared with the dense file"
    elif speed.change is None:
        text += "; its speed was not measured"
    else:
        text += place
    text += f"; {describe_quality(quality)}"
    if found.recommends_dense:
        lost = describe_factor(int8.change if int8 else None, "faster", "slower")
        other = found.compressed
        smaller = describe_factor(row.size_bytes / other.size_bytes if other.size_bytes else None, "smaller", "larger")
        aside = f", though {smaller}" if smaller.endswith("× smaller") else ""
        return f"{text}. Take this file, the network as given in {row.scheme}: {other.artifact} is {lost} than it{aside}."
    if macs.change is not None:
        text += ", with " + (f"{format_ratio(macs.change)} of the multiply-adds" if macs.change < 1 else "all of the multiply-adds")
    return text + "."


def _scheme_of(artifact: str, group: Group | None) -> str:
    return next((row.scheme for row in group.rows if row.artifact == artifact), "int8") if group else "int8"


def describe_quality(quality: Figure) -> str:
    """Return what is left of the network as given, as a clause: the change of the metric, or what the outputs keep."""
    if quality.kind == "kept" and quality.after is not None:
        return f"of the network as given it keeps {format_share(quality.after)} of {quality.name}, and no metric has judged it"
    spec = quality.metric
    if spec is None or quality.change is None:
        return "what it keeps of the network as given is not known"
    before, after = (format_metric(value, is_accuracy=spec.is_accuracy) for value in (quality.before, quality.after))
    change = format_metric_change(quality.change, is_accuracy=spec.is_accuracy) + (" points" if spec.is_accuracy else "")
    lower = "" if spec.higher_is_better else ", where lower is better"
    return f"{quality.name} went from {before} to {after}{lower} ({change})"


def write_sentence_of_unfinished_run(macs: Figure, layers: LayerTable | None, plan: CompressionPlan | None, *, records: RunRecords) -> str:
    """Return the progress of a run that has no file but dense fp32 ones, as one sentence."""
    if any(not file.for_comparison for file in records.refused):
        return "No compressed file was published: every one was refused, for the reasons below."
    if layers is None:
        return "Only the dense baseline has been exported yet." if records.artifacts else "Nothing has been compressed or measured yet."
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
