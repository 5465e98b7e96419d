"""The space of a search, its trials, and its result."""

from __future__ import annotations

from typing import Any

from edgecompress.records.base import SCHEMA, Record

Value = int | float | str


class Axis(Record, frozen=True, kw_only=True):
    """The values of one option in a search: one of `values`, or any number from `low` to `high` where `values` is empty."""

    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0


class SearchSpec(Record, frozen=True, kw_only=True):
    """The conditions that all trials of a study share; kept in the study, so that every process that joins searches the same.

    Attributes:
        network: Hash of the recipe, the weights, the shapes of the inputs and the data.
        options: Options of every run, except those in `space`; paths are those of the host that began.
        device: Model, SoC and ABI of the device that latencies are measured on.
    """

    schema: int = SCHEMA
    model: str
    network: str
    options: dict[str, Any]
    space: dict[str, Axis]
    sampler: str
    device: str


class Score(Record, frozen=True, kw_only=True):
    """The objectives of a search; `accuracy` is that of the metric, or the fraction that is kept of the dense network."""

    accuracy: float
    latency_ms: float
    size_bytes: int


class SearchPoint(Record, frozen=True, kw_only=True):
    """A finished trial.

    Attributes:
        run: The trial's run folder, inside that of the search on `host`.
        choice: The value of each option in the search space.
        macs_ratio: Ratio of MACs that the plan reached.
        score: Objectives of the compressed file. In a `SearchResult` the latencies of `score` and `dense` are scaled to the speed that the
            machine had when the dense file was first measured.
        dense: Objectives of the dense fp32 file of the same format, measured interleaved; None when that file was refused.
        noisy: Why the latency should be measured again.
        on_front: Whether no other trial is at least as good in everything and better in something.
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
    """A trial that ended in an error."""

    trial: int
    choice: dict[str, Value]
    reason: str


class SearchResult(Record, frozen=True, kw_only=True):
    """The state of a study.

    Attributes:
        storage: Address of the study, without a password.
        points: One for each choice whose trial finished, in the order of the trials.
        running: Number of unfinished trials, on any host.
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
        """The points on the Pareto front, the fastest first."""
        return tuple(sorted((p for p in self.points if p.on_front), key=lambda p: (p.score.latency_ms, p.score.size_bytes)))

    @property
    def references(self) -> dict[str, Score]:
        """The dense fp32 file of each format on the front, at the resolution of the fastest point of that format."""
        return {point.artifact.rpartition(".")[2]: point.dense for point in reversed(self.front) if point.dense is not None}
