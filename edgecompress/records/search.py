"""What a search explores, and what it found."""

from __future__ import annotations

from typing import Any

from edgecompress.records.base import SCHEMA, Record

Value = int | float | str


class Axis(Record, frozen=True, kw_only=True):
    """What one option of a trial may be: one of `values`, or any number from `low` to `high` where there are none."""

    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0


class SearchSpec(Record, frozen=True, kw_only=True):
    """What makes trials comparable; kept in the study, so that whoever joins it searches the same.

    Attributes:
        network: Hash of the recipe, the weights, the shapes of the inputs and the data.
        options: Of every run, but for what the axes say; paths are those of the host that began.
        device: What latencies are measured on: model, processor, and its architecture.
    """

    schema: int = SCHEMA
    model: str
    network: str
    options: dict[str, Any]
    space: dict[str, Axis]
    sampler: str
    device: str


class Score(Record, frozen=True, kw_only=True):
    """What a search weighs. `accuracy` is the file's top-1, or without labels its agreement with the dense network."""

    accuracy: float
    latency_ms: float
    size_bytes: int


class SearchPoint(Record, frozen=True, kw_only=True):
    """A trial that came to an end.

    Attributes:
        run: The trial's run folder, inside that of the search on `host`.
        choice: The value of each axis.
        macs_ratio: What the plan reached.
        score: Its latency, and that of `dense`, are as measured in the run, and in a result at the speed that the machine had when the
            dense file was first measured.
        dense: The undecomposed fp32 file of the same format, measured interleaved with it; None when that one was refused.
        noisy: Why its time should be measured again.
        on_front: No other trial is at least as good in everything and better in something.
    """

    trial: int
    run: str
    host: str
    choice: dict[str, Value]
    artifact: str
    score: Score
    accuracy_of: str
    macs_ratio: float
    dense: Score | None
    backend: str
    seconds: float
    noisy: tuple[str, ...] = ()
    on_front: bool = False


class FailedTrial(Record, frozen=True, kw_only=True):
    trial: int
    choice: dict[str, Value]
    reason: str


class SearchResult(Record, frozen=True, kw_only=True):
    """The state of a study.

    Attributes:
        storage: Where the study lies, without a password.
        points: One for each choice that was tried to its end, in the order of the trials.
        running: Trials that are not finished, wherever they run.
        created_at: Date and time, ISO 8601.
    """

    schema: int = SCHEMA
    study: str
    storage: str
    spec: SearchSpec
    points: tuple[SearchPoint, ...]
    failed: tuple[FailedTrial, ...]
    running: int
    created_at: str

    @property
    def front(self) -> tuple[SearchPoint, ...]:
        """The points that no other one beats in everything, the fastest first."""
        return tuple(sorted((p for p in self.points if p.on_front), key=lambda p: (p.score.latency_ms, p.score.size_bytes)))

    @property
    def references(self) -> dict[str, Score]:
        """The dense fp32 file of each format on the front, at the resolution of the fastest point of that format."""
        return {point.artifact.rpartition(".")[2]: point.dense for point in reversed(self.front) if point.dense is not None}
