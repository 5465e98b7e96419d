"""The messages between a farm and the process of one device, each a line of JSON."""

from typing import Generic, Literal, TypeVar

from edgecompress.records import BenchmarkOptions, BenchmarkResult, Record
from edgecompress.records.evaluation import Evaluation, EvaluationOptions

Result = TypeVar("Result", BenchmarkResult, Evaluation)


class FarmWork(Record, frozen=True, kw_only=True):
    """The options of every job of a farm: `measuring` where artifacts are measured, `scoring` where they are evaluated."""

    measuring: BenchmarkOptions | None = None
    scoring: EvaluationOptions | None = None


class WorkerOrder(Record, frozen=True, kw_only=True):
    """An order to a worker.

    "prepare" connects, takes the lease, lets the device cool down and answers "ready". Then follows "run", which does the job and gives the
    lease back, or "rest", which only gives it back.
    """

    do: Literal["prepare", "run", "rest"]
    files: tuple[str, ...] = ()


class WorkerReport(Record, Generic[Result], frozen=True, kw_only=True):
    """A report of a worker.

    A "state" tells in `text` what the worker waits for. The `kind` of a "failed" tells whether another try may succeed (lost, late), or
    whether the device or the job is at fault.
    """

    event: Literal["state", "ready", "done", "failed"]
    text: str = ""
    kind: Literal["", "lost", "late", "device", "job"] = ""
    results: tuple[Result, ...] = ()
