"""What a farm and the process of one device say to each other: a JSON line each."""

from typing import Generic, Literal, TypeVar

from edgecompress.records import BenchmarkResult, Measuring, Record
from edgecompress.records.evaluation import Evaluation, Scoring

Result = TypeVar("Result", BenchmarkResult, Evaluation)


class Work(Record, frozen=True, kw_only=True):
    """What the jobs of a farm are: artifacts to measure, or to evaluate."""

    measuring: Measuring | None = None
    scoring: Scoring | None = None


class Order(Record, frozen=True, kw_only=True):
    """prepare: connect, take the lease, cool down, say ready. Then run: measure, and give the lease back. Or rest: give it back."""

    do: Literal["prepare", "run", "rest"]
    files: tuple[str, ...] = ()


class Report(Record, Generic[Result], frozen=True, kw_only=True):
    """state: what it waits for. failed: `kind` says whether another try may work (lost, late), the device is at fault, or the job."""

    event: Literal["state", "ready", "done", "failed"]
    text: str = ""
    kind: Literal["", "lost", "late", "device", "job"] = ""
    results: tuple[Result, ...] = ()
