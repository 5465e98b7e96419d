"""The Pareto front of accuracy (higher is better), latency and size (lower is better)."""

from collections.abc import Sequence

from edgecompress.records import Score


def dominates(a: Score, b: Score) -> bool:
    """Whether `a` is at least as good as `b` in each number and better in one of them."""
    pairs = ((a.accuracy, b.accuracy), (b.latency_ms, a.latency_ms), (b.size_bytes, a.size_bytes))
    return all(one >= other for one, other in pairs) and any(one > other for one, other in pairs)


def pareto_front(scores: Sequence[Score]) -> list[int]:
    """Return the indices of the scores that no other score dominates; equal scores are all kept or all left out."""
    return [i for i, score in enumerate(scores) if not any(dominates(other, score) for other in scores)]
