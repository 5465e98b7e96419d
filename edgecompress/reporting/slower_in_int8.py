"""Compressed files that beat the int8-static one of their format in speed or size, which one would not expect."""

from collections.abc import Iterable

from edgecompress.reporting.document import ArtifactRow, Group
from edgecompress.reporting.numbers import format_ms, format_size
from edgecompress.targets import INT8_STATIC, SCHEMES, Scheme


def list_slower_in_int8(groups: Iterable[Group]) -> list[str]:
    """Return a sentence for each group in which another compressed file is faster than the int8-static one, or smaller."""
    found = []
    for group in groups:
        rows = [row for row in group.rows if row.latency and row.model != "dense"]
        int8 = next((row for row in rows if row.scheme == INT8_STATIC), None)
        if int8 is None:
            continue
        fastest, smallest = min(rows, key=_median_ms), min(rows, key=lambda row: row.size_bytes)
        if fastest is not int8:
            times = f"{format_ms(_median_ms(fastest))} ms against {format_ms(_median_ms(int8))} ms"
            found.append(
                f"{fastest.artifact} is faster than {int8.artifact}, {times}: `edgecompress inspect` shows what runs on slow kernels."
            )
        if smallest is not int8:
            sizes = f"{format_size(smallest.size_bytes)} against {format_size(int8.size_bytes)}"
            why = _describe_saving(SCHEMES[smallest.scheme])
            found.append(f"{smallest.artifact} is smaller than {int8.artifact}, {sizes}: {why}.")
    return found


def _describe_saving(scheme: Scheme) -> str:
    """Say why files of a scheme are smaller than int8-static ones."""
    if scheme.weight_bits < 8:
        return f"a weight takes {scheme.weight_bits} bits"
    return "it needs no scales of activations" if scheme.dynamic else "`edgecompress inspect` shows what it leaves out"


def _median_ms(row: ArtifactRow) -> float:
    return row.latency.median_ms if row.latency else float("inf")
