"""The Pareto front: accuracy upwards, latency and size downwards."""

from collections.abc import Sequence

from edgecompress.records import Score


def dominates(a: Score, b: Score) -> bool:
    """Whether `a` is at least as good as `b` in everything and better in something."""
    pairs = ((a.accuracy, b.accuracy), (b.latency_ms, a.latency_ms), (b.size_bytes, a.size_bytes))
    return all(one >= other for one, other in pairs) and any(one > other for one, other in pairs)


def front(scores: Sequence[Score]) -> list[int]:
    """Return the indices of the scores that no other one dominates; equal ones stand or fall together."""
    return [i for i, score in enumerate(scores) if not any(dominates(other, score) for other in scores)]
