"""Where an int8 static file is not the fastest and smallest of its format, and why: one expects it to be both."""

from collections.abc import Iterable
from typing import Final

from edgecompress.reporting.document import Group, Row
from edgecompress.reporting.numbers import format_ms, format_size

SCHEME: Final = "int8-static"
WHY_FASTER: Final = "`edgecompress inspect` shows which ops run on slow kernels"
WHY_SMALLER: Final = {
    "int8-dynamic": "it needs no scales of activations",
    "int4-weights": "a weight takes 4 bits",
}


def outdone(groups: Iterable[Group]) -> list[str]:
    """Return a sentence for each group in which another compressed file is faster than the int8 static one, or smaller."""
    found = []
    for group in groups:
        rows = [row for row in group.rows if row.latency and row.model != "dense"]
        ours = next((row for row in rows if row.scheme == SCHEME), None)
        if ours is None:
            continue
        fastest, smallest = min(rows, key=_median_ms), min(rows, key=lambda row: row.size_bytes)
        if fastest is not ours:
            times = f"{format_ms(_median_ms(fastest))} ms against {format_ms(_median_ms(ours))} ms"
            found.append(
                f"{fastest.artifact} is faster than {ours.artifact}, {times}: `edgecompress inspect` shows what runs on slow kernels."
            )
        if smallest is not ours:
            sizes = f"{format_size(smallest.size_bytes)} against {format_size(ours.size_bytes)}"
            why = WHY_SMALLER.get(smallest.scheme, "`edgecompress inspect` shows what it leaves out")
            found.append(f"{smallest.artifact} is smaller than {ours.artifact}, {sizes}: {why}.")
    return found


def _median_ms(row: Row) -> float:
    return row.latency.median_ms if row.latency else float("inf")
