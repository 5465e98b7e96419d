"""The figures of a verdict: size, speeds, what is left of the network as given, and multiply-adds."""

from edgecompress.records import FinetuneResult, MetricSpec
from edgecompress.records.metrics import metric_loss
from edgecompress.records.outputs import Fidelity
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import ArtifactRow, Figure, Group, LayerTable
from edgecompress.reporting.numbers import format_ratio, format_whole

OF_THE_FILE = "of the file itself"
OF_THE_NETWORK = "of the PyTorch model before export"
NOT_EXPORTED = "nothing exported yet"
NOISY = ", by noisy times"


def make_size_figure(row: ArtifactRow | None, *, reason: str = NOT_EXPORTED) -> Figure:
    if row is None:
        return Figure(kind="size", reason=reason)
    before = row.times_smaller * row.size_bytes if row.times_smaller is not None else None
    return Figure(kind="size", before=before, after=row.size_bytes, change=row.times_smaller, reason=row.size_reason)


def make_speed_figure(row: ArtifactRow | None, group: Group | None, *, reason: str = NOT_EXPORTED) -> Figure:
    """Return the speed against the dense fp32 file."""
    if row is None:
        return Figure(kind="speed", reason=reason)
    if row.latency is None or group is None:
        return Figure(kind="speed", reason="not measured on any device")
    before = row.speed_up * row.latency.median_ms if row.speed_up is not None else None
    told = f"{describe_group(group)}{NOISY if has_noisy_times(row, group) else ''}"
    return Figure(kind="speed", before=before, after=row.latency.median_ms, change=row.speed_up, reason=row.speed_reason or told)


def has_noisy_times(row: ArtifactRow, group: Group) -> bool:
    """Whether the times of a file, or of a dense one that it is compared with, should not be relied on."""
    compared = {row.artifact, row.speed_baseline, row.int8_baseline}
    return any(other.latency is not None and bool(other.latency.noisy) for other in group.rows if other.artifact in compared)


def make_int8_figure(row: ArtifactRow | None, group: Group | None) -> Figure | None:
    """Return the speed of the compressed file against the dense file in integers: what factorizing adds; None where that is unknown.

    Args:
        row: The fastest compressed file, also where the dense file in integers is recommended.
    """
    if row is None or row.latency is None or row.int8_speed_up is None or group is None:
        return None
    before = row.int8_speed_up * row.latency.median_ms
    return Figure(
        kind="int8",
        name=row.int8_baseline,
        before=before,
        after=row.latency.median_ms,
        change=row.int8_speed_up,
        reason=f"{row.artifact} against {row.int8_baseline}{NOISY if has_noisy_times(row, group) else ''}",
    )


def make_quality_figure(row: ArtifactRow | None, records: RunRecords) -> Figure:
    """Return what is left of the network as given: the change of the metric where there is one, else what the outputs keep.

    The figure is that of the file, or that of the PyTorch model where the file's is unknown, and says which.
    """
    network = records.compression
    spec = (row.metric if row else None) or (network.metric if network else None)
    if row is not None and spec is not None and row.change is not None:
        told = f"{OF_THE_FILE}{describe_samples(row)}"
        return Figure(kind="metric", name=spec.name, metric=spec, before=row.dense_value, after=row.value, change=row.change, reason=told)
    of_file = _make_kept_figure(row.fidelity if row else None, OF_THE_FILE)
    if of_file is not None and spec is None:
        return of_file
    of_network = _make_network_figure(records, spec)
    return of_network or of_file or _make_unknown_figure(row, spec)


def _make_network_figure(records: RunRecords, spec: MetricSpec | None) -> Figure | None:
    """Return the figure of the compressed network in PyTorch; None where it was not measured."""
    network, finetuned = records.compression, records.finetuned
    if network is not None and spec is not None and spec.name in network.dense_metrics.keys() & network.metrics.keys():
        before, after = network.dense_metrics[spec.name], network.metrics[spec.name]
        return Figure(
            kind="metric",
            name=spec.name,
            metric=spec,
            before=before,
            after=after,
            change=-metric_loss(spec, network.dense_metrics, network.metrics),
            reason=OF_THE_NETWORK,
        )
    if (of_training := _make_training_figure(finetuned, spec)) is not None:
        return of_training
    return _make_kept_figure(network.fidelity if network else None, OF_THE_NETWORK) if spec is None else None


def _make_training_figure(finetuned: FinetuneResult | None, spec: MetricSpec | None) -> Figure | None:
    """Return the figure of the evaluation after training; None where another metric or none was measured."""
    headline = finetuned.headline if finetuned else None
    if (
        finetuned is None
        or headline is None
        or finetuned.dense_value is None
        or finetuned.kept_value is None
        or spec not in {None, headline}
    ):
        return None
    change = -metric_loss(headline, {headline.name: finetuned.dense_value}, {headline.name: finetuned.kept_value})
    return Figure(
        kind="metric",
        name=headline.name,
        metric=headline,
        before=finetuned.dense_value,
        after=finetuned.kept_value,
        change=change,
        reason=OF_THE_NETWORK,
    )


def _make_kept_figure(fidelity: Fidelity | None, of: str) -> Figure | None:
    worst = fidelity.worst if fidelity else None
    if fidelity is None or worst is None:
        return None
    told = ", ".join((worst.kind, *worst.details))
    reason = f"{told}; {of}, on {format_whole(fidelity.samples)} samples"
    return Figure(kind="kept", name=worst.name, after=worst.kept, reason=reason)


def _make_unknown_figure(row: ArtifactRow | None, spec: MetricSpec | None) -> Figure:
    if row is None or spec is None:
        return Figure(kind="kept", reason="not measured")
    return Figure(kind="metric", name=spec.name, metric=spec, after=row.value, reason=row.metric_reason)


def describe_samples(row: ArtifactRow) -> str:
    """Return e.g. `, on 5,000 samples`, the samples that a file was verified and scored on."""
    return f", on {format_whole(row.parity.samples)} samples" if row.parity else ""


def make_macs_figure(layers: LayerTable | None, *, dense: bool = False) -> Figure:
    """Return the multiply-adds of the compressed network, or of the dense one where a dense file is recommended."""
    if layers is None:
        return Figure(kind="macs", reason="layers were not analyzed")
    if not layers.planned:
        return Figure(kind="macs", before=layers.macs_before, reason="no plan yet")
    change = layers.macs / layers.macs_before if layers.macs_before else None
    if dense:
        reason = f"of the dense network; the compressed one has {format_ratio(change)}" if change != 1 else ""
        return Figure(kind="macs", before=layers.macs_before, after=layers.macs_before, change=1.0, reason=reason)
    reason = "" if layers.measured else "planned, not carried out"
    return Figure(kind="macs", before=layers.macs_before, after=layers.macs, change=change, reason=reason)


def describe_group(group: Group) -> str:
    """Return e.g. `Pixel 7 (emulated), 1 thread`."""
    device = group.device.model or group.device.url
    emulated = " (emulated)" if group.device.emulated else ""
    return f"{device}{emulated}, {group.threads} thread{'' if group.threads == 1 else 's'}"
