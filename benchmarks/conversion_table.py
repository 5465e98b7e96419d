"""Write the results of the conversion matrix as a Markdown table."""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rows import write_section
from support.conversion_matrix import OUTPUTS, VARIANTS, Output, Result
from support.matrix_networks import NETWORKS

BEGIN, END = "<!-- conversion matrix: written by benchmarks/conversion_matrix.py -->", "<!-- end of the conversion matrix -->"
PACKAGES = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert", "onnx2tf", "tensorflow", "onnxruntime", "executorch")
FAULTS = {
    "unsupported": "refused",
    "scheme": "the scheme hurts",
    "wrong": "**the converter is wrong**",
    "broken": "**the toolchain failed**",
}


def write_table(path: Path, results: Sequence[Result], day: date) -> None:
    """Write the table between its marks in a page; the rest of the page stays."""
    write_section(path, table(results, day), BEGIN, END)


def table(results: Sequence[Result], day: date) -> str:
    """Return the conditions, the table, and a note on each reason for a cell that did not pass."""
    rows, notes = rows_of(results)
    return "\n".join([conditions(results, day), "", *rows, "", *notes]).rstrip()


def rows_of(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Return a row for each output with a column for each network (variants passed of those run), and the notes."""
    counted = [result for result in results if not takes_no_layer(result)]
    notes: dict[tuple[str, str], int] = {}
    texts: dict[int, list[Result]] = {}
    rows = [f"| format | scheme | {' | '.join(NETWORKS)} |", f"|---|---|{'---|' * len(NETWORKS)}"]
    for output in OUTPUTS:
        cells = []
        for network in NETWORKS:
            here = [result for result in counted if result.network == network and result.cell.output == output]
            marks = set()
            for result in (result for result in here if result.outcome != "passed"):
                number = notes.setdefault((result.outcome, re.sub(r"\d[\d.]*", "0", result.reason)), len(notes) + 1)
                texts.setdefault(number, []).append(result)
                marks.add(number)
            passed = sum(result.outcome == "passed" for result in here)
            cells.append(f"{passed}/{len(here)}{''.join(f' [{mark}]' for mark in sorted(marks))}" if here else "")
        rows.append(f"| {output_title(output)} | {output.scheme} | {' | '.join(cells)} |")
    return rows, [f"{number}. {format_note(texts[number])}" for number in sorted(texts)]


def takes_no_layer(result: Result) -> bool:
    return result.outcome == "unsupported" and not result.layers and result.method != VARIANTS[0]


def output_title(output: Output) -> str:
    return f"{output.format} by {output.route}" if output.route else output.format


def format_note(results: Sequence[Result]) -> str:
    """Return whose fault it is, the reason with the figures of the first cell, and the names of the cells."""
    where = ", ".join(dict.fromkeys(f"{r.network} {r.method}" for r in results)) if results[0].outcome != "unsupported" else ""
    return f"{FAULTS[results[0].outcome]}: {results[0].reason}{f' ({where})' if where else ''}"


def conditions(results: Sequence[Result], day: date) -> str:
    """Return the date, the machine, the versions, and the part of the matrix that the results cover."""
    whole = len(OUTPUTS) * len(NETWORKS)
    run = Counter(result.method for result in results)
    none = sorted({(result.method, result.network) for result in results if takes_no_layer(result)})
    cells = whole * len(VARIANTS)
    part = join(f"{method} {run[method]} of {whole}" for method in VARIANTS if run[method])
    scope = f"All {cells} cells" if len(results) == cells else f"Of {cells} cells these: {part}"
    versions = join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        f"Run on {day} on {os.cpu_count()} cores of {platform.machine()}, with {versions}. "
        f"{scope}. An entry counts the variants (dense, and each factorization) that passed the gate, of those that were run.",
        *([f"Not counted, because the factorization takes no layer there: {join(f'{m} on {n}' for m, n in none)}."] if none else []),
    ]
    return "\n".join(lines)


def join(items: Iterable[str]) -> str:
    return ", ".join(items)
