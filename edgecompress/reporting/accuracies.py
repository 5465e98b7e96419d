"""What `evaluate` found on devices, put beside each other where it may be: same device, runtime, runner, threads and samples."""

from collections.abc import Sequence

from edgecompress.records import Artifact
from edgecompress.records.evaluation import Evaluation
from edgecompress.reporting.document import Accuracy, Scored

Key = tuple[str, ...]


def key(found: Evaluation) -> Key:
    """Return what must be equal for two accuracies to have a difference: where and by what they were computed, and on which samples."""
    d = found.device
    return (d.url, d.serial, d.model, str(d.emulated), found.backend, found.runner, str(found.threads), found.data_sha256)


def accuracies(artifacts: Sequence[Artifact], evaluations: Sequence[Evaluation]) -> tuple[tuple[Accuracy, ...], tuple[str, ...]]:
    """Return a table for each place and data, and what was left out because this run no longer has the file."""
    dense = {a.sha256 for a in artifacts if a.model == "dense" and a.quant.scheme == "fp32"}
    known = {a.sha256 for a in artifacts}
    left_out = tuple(
        f"{e.artifact}: evaluated as {e.artifact_sha256[:12]}, a file this run no longer has; evaluate it again"
        for e in evaluations
        if e.artifact_sha256 not in known
    )
    grouped: dict[Key, dict[str, Evaluation]] = {}
    for found in sorted(evaluations, key=lambda e: e.started_at):  # a newer one of the same file takes the place of the older
        if found.artifact_sha256 in known:
            grouped.setdefault(key(found), {})[found.artifact_sha256] = found
    return tuple(_table(list(group.values()), dense) for group in grouped.values()), left_out


def _table(found: list[Evaluation], dense: set[str]) -> Accuracy:
    base = next((e for e in found if e.artifact_sha256 in dense), None)
    first = found[0]
    return Accuracy(
        device=first.device,
        backend=first.backend,
        data=first.data,
        samples=first.samples,
        reason="" if base else "no difference: the dense fp32 file was not evaluated here on these samples",
        rows=tuple(
            Scored(
                artifact=e.artifact,
                top1=e.top1,
                change_points=100 * (e.top1 - base.top1) if base else None,
                top5=e.top5,
                host_top1=e.host_top1,
                agreement=e.host.top1_agreement if e.host else None,
                problem=e.problem,
            )
            for e in found
        ),
    )
