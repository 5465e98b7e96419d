"""What one of several stages of decomposing and fine-tuning left."""

from __future__ import annotations

from edgecompress.records.base import Record
from edgecompress.records.model import CompressionPlan, DecomposeResult, FinetuneResult


class StageResult(Record, frozen=True, kw_only=True):
    """The records of one stage; errors are against the network of the stage before, accuracies against the dense one."""

    plan: CompressionPlan
    decomposed: DecomposeResult
    finetuned: FinetuneResult
