"""Metrics that `evaluate` found on devices, beside each other where they are `comparable`."""

from collections.abc import Sequence

from edgecompress.devices.statistics import comparable
from edgecompress.records import Artifact
from edgecompress.records.evaluation import Evaluation
from edgecompress.records.metrics import metric_loss
from edgecompress.reporting.document import AccuracyRow, AccuracyTable


def make_accuracy_tables(
    artifacts: Sequence[Artifact], evaluations: Sequence[Evaluation]
) -> tuple[tuple[AccuracyTable, ...], tuple[str, ...]]:
    """Return a table for each device and data, and a sentence for each evaluation of a file that this run no longer has."""
    dense = {a.sha256 for a in artifacts if a.model == "dense" and a.quant.scheme == "fp32"}
    known = {a.sha256 for a in artifacts}
    left_out = tuple(
        f"{e.artifact}: evaluated as {e.artifact_sha256[:12]}, a file this run no longer has; evaluate it again"
        for e in evaluations
        if e.artifact_sha256 not in known
    )
    groups: list[dict[str, Evaluation]] = []
    for evaluation in sorted(evaluations, key=lambda e: e.started_at):  # a newer one of the same file takes the place of the older
        if evaluation.artifact_sha256 not in known:
            continue
        if (group := next((g for g in groups if comparable(next(iter(g.values())), evaluation) is None), None)) is None:
            groups.append(group := {})
        group[evaluation.artifact_sha256] = evaluation
    return tuple(_make_table(list(group.values()), dense) for group in groups), left_out


def _make_table(found: list[Evaluation], dense: set[str]) -> AccuracyTable:
    base = next((e for e in found if e.artifact_sha256 in dense), None)
    first = found[0]
    return AccuracyTable(
        device=first.device,
        backend=first.backend,
        data=first.data,
        samples=first.samples,
        metric=first.headline,
        reason="" if base else "no difference: the dense fp32 file was not evaluated here on these samples",
        rows=tuple(
            AccuracyRow(
                artifact=e.artifact,
                value=e.value,
                change=_change(base, e),
                host_value=e.host_value,
                top5=e.top5,
                agreement=e.host.top1_agreement if e.host else None,
                problem=e.problem,
            )
            for e in found
        ),
    )


def _change(base: Evaluation | None, found: Evaluation) -> float | None:
    """Return the change of the metric from the dense file's, a loss being negative; None without one of them."""
    if base is None or base.value is None or found.value is None:
        return None
    name = found.headline.name
    return -metric_loss(found.headline, {name: base.value}, {name: found.value})
