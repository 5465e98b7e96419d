"""The proof of compression in the report: every output by its kind, and every metric, of the compressed network and of each file."""

from edgecompress.records import Artifact, Fidelity, MetricSpec, OutputFidelity, OutputSpec
from edgecompress.records.metrics import metric_loss
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import ArtifactRow, CompressionProof, KeptRow, MetricRow, OutputTable
from edgecompress.reporting.quality import metric_values

DENSE_NETWORK = "network as given, in PyTorch"
COMPRESSED_NETWORK = "compressed network, in PyTorch"


def make_compression_proof(records: RunRecords, rows: tuple[ArtifactRow, ...]) -> CompressionProof | None:
    """Return what is left of the network as given; None where neither kinds of outputs nor a loss are known, as in runs of before.

    Args:
        rows: Each artifact, with the change of its metric.
    """
    network = records.compression
    specs = list_outputs(records)
    measured: list[tuple[str, Fidelity]] = [(a.path, a.fidelity) for a in records.artifacts if a.fidelity]
    if network is not None:
        measured.insert(0, ("", network.fidelity))
    if not specs and not measured:
        return None
    tables = tuple(OutputTable(spec=spec, rows=tuple(_list_kept(spec, measured))) for spec in specs)
    spec = next((row.metric for row in rows if row.metric), None) or (network.metric if network else None)
    return CompressionProof(
        outputs=tables,
        metric=spec,
        metrics=tuple(_list_metrics(records, rows, spec)) if spec else (),
        max_loss=network.max_loss if network else None,
        data=network.data if network else "",
        samples=measured[0][1].samples if measured else None,
    )


def list_outputs(records: RunRecords) -> tuple[OutputSpec, ...]:
    """Return the kinds of the outputs from the first record that has them; of files alone, those that were judged."""
    given = (
        records.stats.outputs if records.stats else (),
        records.plan.outputs if records.plan else (),
        *(artifact.kinds for artifact in records.artifacts),
    )
    judged = next((a.fidelity.outputs for a in records.artifacts if a.fidelity), ())
    return next(filter(None, given), ()) or tuple(OutputSpec(kind=each.kind, name=each.name) for each in judged)


def _list_kept(spec: OutputSpec, measured: list[tuple[str, Fidelity]]) -> list[KeptRow]:
    found: list[tuple[str, OutputFidelity]] = [(name, each) for name, fidelity in measured for each in fidelity.outputs]
    return [KeptRow(artifact=name, found=each) for name, each in found if each.name == spec.name]


def _list_metrics(records: RunRecords, rows: tuple[ArtifactRow, ...], spec: MetricSpec) -> list[MetricRow]:
    network, found = records.compression, []
    if network is not None and spec.name in network.dense_metrics.keys() & network.metrics.keys():
        change = -metric_loss(spec, network.dense_metrics, network.metrics)
        found = [
            MetricRow(name=DENSE_NETWORK, values=network.dense_metrics),
            MetricRow(name=COMPRESSED_NETWORK, values=network.metrics, change=change),
        ]
    changes = {row.artifact: row.change for row in rows if not row.baseline}
    return found + [_make_metric_row(artifact, changes) for artifact in records.artifacts if metric_values(artifact)]


def _make_metric_row(artifact: Artifact, changes: dict[str, float | None]) -> MetricRow:
    return MetricRow(name=artifact.path, values=metric_values(artifact), change=changes.get(artifact.path))
