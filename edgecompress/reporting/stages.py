"""The table of the stages of a run that decomposes and fine-tunes several times."""

from edgecompress.records import CompressionPlan, DecomposeResult, FinetuneResult
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import StageRow


def make_stage_rows(records: RunRecords) -> tuple[StageRow, ...]:
    """Return a row for each finished stage; () for a run of one stage."""
    rows = [_make_row(number, s.plan, s.decomposed, s.finetuned) for number, s in enumerate(records.stages, start=1)]
    if rows and records.plan and records.decomposed and records.finetuned:
        rows.append(_make_row(len(rows) + 1, records.plan, records.decomposed, records.finetuned))
    return tuple(rows)


def _make_row(number: int, plan: CompressionPlan, decomposed: DecomposeResult, finetuned: FinetuneResult) -> StageRow:
    return StageRow(
        number=number,
        macs=plan.macs,
        params=plan.params,
        layers=len(plan.layers),
        changed=sum(error > 0 for error in decomposed.relative_errors.values()),
        metric=finetuned.headline,
        before=finetuned.start_value,
        after=finetuned.kept_value,
        epochs=len(finetuned.epochs) - 1,
        seconds=sum(epoch.seconds for epoch in finetuned.epochs),
    )
