"""All that a run folder holds, as one record for the reader, the report and the search."""

from __future__ import annotations

from edgecompress.records.artifact import Artifact, CompressionCost, QuantizeResult, RefusedArtifact
from edgecompress.records.base import Record
from edgecompress.records.evaluation import Evaluation
from edgecompress.records.measurement import BenchmarkResult
from edgecompress.records.model import CompressionPlan, DecomposeResult, FinetuneResult, ModelStats, QatResult
from edgecompress.records.stages import StageResult


class RunRecords(Record, frozen=True, kw_only=True):
    """The records of a run; None or () for each step that was not run.

    Attributes:
        refused: Files that were made and not published.
        compression: What the compressed network itself lost; None in runs of before.
        results: Latencies of every session, on every device.
        evaluations: Accuracies on devices.
        stages: The stages before the last one; the other records are those of the last stage.
    """

    stats: ModelStats | None = None
    plan: CompressionPlan | None = None
    decomposed: DecomposeResult | None = None
    finetuned: FinetuneResult | None = None
    quantized: QuantizeResult | None = None
    qat: QatResult | None = None
    artifacts: tuple[Artifact, ...] = ()
    refused: tuple[RefusedArtifact, ...] = ()
    compression: CompressionCost | None = None
    results: tuple[BenchmarkResult, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    stages: tuple[StageResult, ...] = ()
