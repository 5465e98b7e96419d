"""Latencies of trials corrected for the drift of the machine between them.

Trials are measured hours apart, and machines drift by more than plans differ. The file of each trial is measured in turns with the dense
file, so both meet the same speed of the machine; the latency of the dense file over its latency in the first trial is the drift.
"""

from collections.abc import Iterable

import msgspec

from edgecompress.records import SearchPoint
from edgecompress.records.search import Value


def correct_drift(points: Iterable[SearchPoint]) -> list[SearchPoint]:
    """Return the points with latencies scaled so that every dense file is as fast as in its first trial.

    Args:
        points: In the order of their trials. A point whose dense file was refused keeps its measured latency.
    """
    first: dict[tuple[str, Value], float] = {}  # (format, resolution) → milliseconds of the dense file
    made = []
    for point in points:
        if point.dense is None or not point.dense.latency_ms:
            made.append(point)
            continue
        file = point.artifact.rpartition(".")[2], point.choice.get("resolution", "")
        ms = first.setdefault(file, point.dense.latency_ms)
        score = msgspec.structs.replace(point.score, latency_ms=point.score.latency_ms * (ms / point.dense.latency_ms))
        made.append(msgspec.structs.replace(point, score=score, dense=msgspec.structs.replace(point.dense, latency_ms=ms)))
    return made
