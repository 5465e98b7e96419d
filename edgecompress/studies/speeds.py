"""Latencies of trials at one speed of the machine.

Trials are measured hours apart, and machines drift by more than plans differ. Each is measured in turns with the dense file, which meets
the same speed: what it took then, over what it took in the first trial that has it, is the drift.
"""

from collections.abc import Iterable

import msgspec

from edgecompress.records import SearchPoint
from edgecompress.records.search import Value


def at_one_speed(points: Iterable[SearchPoint]) -> list[SearchPoint]:
    """Return the points, in the order of their trials, with every dense file as fast as in the first of them that has it.

    A point whose dense file was refused stays as it was measured.
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
