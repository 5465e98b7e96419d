"""Write the results of the architectures as a Markdown table."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rows import write_section
from support.architectures import MACS_RATIO, ArchitectureResult, FileResult

BEGIN, END = "<!-- architectures: written by benchmarks/architectures.py -->", "<!-- end of the architectures -->"
PACKAGES = ("timm", "torchvision", "torch", "litert-torch", "ai-edge-quantizer", "onnxruntime")
TITLES = (
    "architecture", "input", "parameters", "MACs", "ratio", "factorized", "planned in", "format", "fp32", "int8-static", "int8 simulated",
)  # fmt: skip
FAULTS = {
    "unsupported": "refused",
    "scheme": "the scheme alone costs as much",
    "wrong": "**the converter is wrong**",
    "broken": "**the toolchain failed**",
}


def write_table(path: Path, results: Sequence[ArchitectureResult], day: date) -> None:
    """Write the table between its marks in a page; the rest of the page stays."""
    write_section(path, table(results, day), BEGIN, END)


def table(results: Sequence[ArchitectureResult], day: date) -> str:
    """Return the conditions, a row for each architecture, and a note on each that was refused."""
    notes: list[str] = []
    found = [row_of(result, notes) for result in results]
    shown = [i for i in range(len(TITLES)) if any(row[i] for row in found)]  # of files, only where some were made
    rows = [f"| {' | '.join(row[i] for i in shown)} |" for row in (TITLES, ["---"] * len(TITLES), *found)]
    return "\n".join([conditions(results, day), "", *rows, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]).rstrip()


def row_of(result: ArchitectureResult, notes: list[str]) -> list[str]:
    """Return the cells of an architecture; a reason for what did not pass is added to the notes."""
    name, _, shape = result.source.partition("@")
    start = [name, shape.removeprefix("1x")]
    if text := result.crash or result.refusal:
        return [*start, "", "", f"{'**crash**' if result.crash else 'refused'} {_note(text, notes)}", *[""] * 6]
    spent = sum(seconds for step, seconds in result.seconds.items() if step in ("analyze", "plan", "decompose"))
    files = {file.scheme: file for file in result.files}
    return [
        *start,
        f"{result.params / 1e6:.2f} M",
        f"{result.macs / 1e6:.0f} M",
        f"{result.macs_ratio:.2f}",
        f"{result.factorized} of {result.layers}" + (f", {result.irreplaceable} must stay" if result.irreplaceable else ""),
        f"{spent:.1f} s",
        result.files[0].format if result.files else "",
        _cell(files.get("fp32"), notes),
        _cell(files.get("int8-static"), notes),
        "" if result.simulated_db is None else f"{result.simulated_db:.1f} dB",
    ]


def _cell(file: FileResult | None, notes: list[str]) -> str:
    if file is None:
        return ""
    if file.outcome != "passed":
        return f"{FAULTS[file.outcome]} {_note(file.reason, notes)}"
    return f"{file.max_rel:.1e}" if file.scheme == "fp32" else f"{file.sqnr_db:.1f} dB"


def _note(text: str, notes: list[str]) -> str:
    if text not in notes:
        notes.append(text)
    return f"[{notes.index(text) + 1}]"


def conditions(results: Sequence[ArchitectureResult], day: date) -> str:
    """Return the date, the machine, the versions, and how many files passed."""
    files = [file for result in results for file in result.files]
    counted = Counter((file.format, file.scheme, file.outcome == "passed") for file in files)
    kinds = sorted({(form, scheme) for form, scheme, _ in counted})
    passed = ", ".join(f"{counted[*kind, True]} of {counted[*kind, True] + counted[*kind, False]} in {' '.join(kind)}" for kind in kinds)
    refused = sum(bool(result.refusal) for result in results)
    return (
        f"Run on {day} on {os.cpu_count()} cores of {platform.machine()}, with {', '.join(filter(None, map(_version, PACKAGES)))}. "
        f"{len(results)} architectures, planned at {MACS_RATIO} of their MACs; {refused} of them were refused before a file was made. "
        f"Files that pass: {passed or 'none were made'}."
    )


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
