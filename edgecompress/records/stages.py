"""The results of one of several stages of decomposing and fine-tuning."""

from __future__ import annotations

from edgecompress.records.base import Record
from edgecompress.records.model import CompressionPlan, DecomposeResult, FinetuneResult


class StageResult(Record, frozen=True, kw_only=True):
    """The records of one stage; its errors are relative to the network of the stage before."""

    plan: CompressionPlan
    decomposed: DecomposeResult
    finetuned: FinetuneResult
