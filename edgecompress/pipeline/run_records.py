"""Read all that a run folder holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from edgecompress.pipeline.steps import STAGED, STEPS, stage_path
from edgecompress.records import (
    BenchmarkResult,
    CompressionPlan,
    DecomposeResult,
    ExportResult,
    FinetuneResult,
    ModelStats,
    QatResult,
    QuantizeResult,
    Record,
    read_record,
)
from edgecompress.records.evaluation import Evaluation
from edgecompress.records.run_records import RunRecords
from edgecompress.records.stages import StageResult
from edgecompress.runs import is_run, read_run

R = TypeVar("R", bound=Record)


def read_run_records(folder: Path) -> RunRecords:
    """Return the records of a run; None or () for each step that was not run.

    Raises:
        ConfigError: A file of the run is damaged.
    """
    options = read_run(folder).options if is_run(folder) else None
    exported = _read_step(folder, "export", ExportResult)
    return RunRecords(
        stats=_read_step(folder, "analyze", ModelStats),
        plan=_read_step(folder, "plan", CompressionPlan),
        decomposed=_read_step(folder, "decompose", DecomposeResult),
        finetuned=_read_step(folder, "finetune", FinetuneResult),
        quantized=_read_step(folder, "quantize", QuantizeResult),
        # A qat.json may be of an earlier export, with other options.
        qat=None if options and not options.qat_epochs else _read_step(folder, "qat", QatResult),
        artifacts=exported.artifacts if exported else (),
        refused=exported.refused if exported else (),
        compression=exported.compression if exported else None,
        results=tuple(read_record(path, BenchmarkResult) for path in sorted(folder.glob("results/*/*.json"))),
        evaluations=tuple(read_record(path, Evaluation) for path in sorted(folder.glob("results/*/accuracy/*.json"))),
        stages=tuple(_read_stages(folder, options.stages if options else 1)),
    )


def _read_step(folder: Path, name: str, kind: type[R]) -> R | None:
    path = folder / STEPS[name].files[0]
    return read_record(path, kind) if path.exists() else None


def _read_stages(folder: Path, stages: int) -> Iterator[StageResult]:
    """Yield the stages before the last one, up to the first that is not complete."""
    for stage in range(1, stages):
        plan, decomposed, finetuned = (folder / stage_path(STEPS[name].files[0], stage, stages) for name in STAGED)
        if not (plan.exists() and decomposed.exists() and finetuned.exists()):
            return
        yield StageResult(
            plan=read_record(plan, CompressionPlan),
            decomposed=read_record(decomposed, DecomposeResult),
            finetuned=read_record(finetuned, FinetuneResult),
        )
