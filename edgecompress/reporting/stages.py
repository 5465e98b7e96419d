"""The table of the stages of a run that decomposes and fine-tunes several times."""

from collections.abc import Sequence

from edgecompress.records import CompressionPlan, DecomposeResult, FinetuneResult
from edgecompress.records.stages import StageResult
from edgecompress.reporting.document import StageRow


def make_stage_rows(
    before: Sequence[StageResult], plan: CompressionPlan | None, decomposed: DecomposeResult | None, finetuned: FinetuneResult | None
) -> tuple[StageRow, ...]:
    """Return a row for each stage; () for a run of one stage.

    Args:
        before: The stages before the last.
        plan, decomposed, finetuned: The results of the last stage, None where it has not come so far.
    """
    rows = [_make_row(number, s.plan, s.decomposed, s.finetuned) for number, s in enumerate(before, start=1)]
    if rows and plan and decomposed and finetuned:
        rows.append(_make_row(len(rows) + 1, plan, decomposed, finetuned))
    return tuple(rows)


def _make_row(number: int, plan: CompressionPlan, decomposed: DecomposeResult, finetuned: FinetuneResult) -> StageRow:
    return StageRow(
        number=number,
        macs=plan.macs,
        params=plan.params,
        layers=len(plan.layers),
        changed=sum(error > 0 for error in decomposed.relative_errors.values()),
        before_top1=finetuned.before_top1,
        top1=finetuned.top1,
        epochs=len(finetuned.epochs) - 1,
        seconds=sum(epoch.seconds for epoch in finetuned.epochs),
    )
