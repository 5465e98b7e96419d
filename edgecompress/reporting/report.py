"""Report: say what was reached, with every number and condition, as a page for people and as JSON for programs."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from edgecompress.files import write_atomic
from edgecompress.records import (
    Artifact,
    BenchmarkResult,
    CompressionPlan,
    DecomposeResult,
    FinetuneResult,
    ModelStats,
    QatResult,
    QuantizeResult,
    RefusedArtifact,
    to_json,
)
from edgecompress.records.evaluation import Evaluation
from edgecompress.records.stages import StageResult
from edgecompress.reporting.data import build
from edgecompress.reporting.document import Report
from edgecompress.reporting.render import render


def report(
    folder: Path,
    *,
    stats: ModelStats | None = None,
    plan: CompressionPlan | None = None,
    decomposed: DecomposeResult | None = None,
    finetuned: FinetuneResult | None = None,
    quantized: QuantizeResult | None = None,
    qat: QatResult | None = None,
    artifacts: tuple[Artifact, ...] = (),
    refused: tuple[RefusedArtifact, ...] = (),
    results: tuple[BenchmarkResult, ...] = (),
    evaluations: tuple[Evaluation, ...] = (),
    stages: tuple[StageResult, ...] = (),
) -> Report:
    """Write `report.json` and `report.html` into `folder`, and return what they say.

    Whatever is missing is named in the report, with the command that fills it.

    Args:
        stages: Of several, those before the last, of which the other records are.

    Raises:
        EdgeCompressError: The disk is full.
        ConfigError: The folder cannot be written.
    """
    found = build(
        stats=stats,
        plan=plan,
        decomposed=decomposed,
        finetuned=finetuned,
        quantized=quantized,
        qat=qat,
        artifacts=artifacts,
        refused=refused,
        results=results,
        evaluations=evaluations,
        stages=stages,
        # An absolute path would tell strangers the name of the user's home.
        run=folder.name if folder.is_absolute() else str(folder),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("edgecompress"),
    )
    # The page is rendered before the first file is written, so that both are from this call or neither is.
    page = render(found).encode()
    write_atomic(folder / "report.json", to_json(found))
    write_atomic(folder / "report.html", page)
    return found
