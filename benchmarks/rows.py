"""Print the rows of a benchmark as JSON, judge them against their bounds, and write them into a page of docs/results on request."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import torch

PROGRAM = Path(sys.argv[0])
BEGIN, END = f"<!-- rows of {PROGRAM.name}: written by --write -->", f"<!-- end of the rows of {PROGRAM.name} -->"
PACKAGES = ("edgecompress", "torch", "ai-edge-litert")


class Row(NamedTuple):
    """One figure: `ratio` is ours over the peer's, or ours itself without a peer; `beside` holds unbounded figures by name."""

    row: str
    ours: float
    peer: float | None
    ratio: float
    bound: str
    holds: bool
    beside: dict[str, float]


def parse(description: str, **options: str) -> argparse.Namespace:
    """Parse --quick, --write and the benchmark's own options, which are given as name and help text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run the same rows on small sizes, most within 50 s")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the rows into this page, e.g. docs/results/planner.md")
    for name, text in options.items():
        parser.add_argument(f"--{name}", help=text)
    return parser.parse_args()


class Rows:
    """Collect and print rows; `end` writes the page, where one was asked for, and exits with 1 when a bound does not hold."""

    def __init__(self, page: Path | None = None) -> None:
        self.page = page
        self.rows: list[Row] = []

    def add(self, row: str, *, ours: float, peer: float | None, bound: float, sense: Literal["<=", ">="] = "<=", **beside: float) -> None:
        ratio = ours if peer is None else ours / peer
        holds = ratio <= bound if sense == "<=" else ratio >= bound
        made = Row(row, ours, peer, ratio, f"{sense} {bound:g}", holds, beside)
        self.rows.append(made)
        fields = made._asdict()
        print(json.dumps(fields | fields.pop("beside")), flush=True)

    def end(self) -> None:
        if self.page is not None:
            write_section(self.page, f"{conditions()}\n\n{table(self.rows)}", BEGIN, END)
        sys.exit(0 if all(row.holds for row in self.rows) else 1)


def write_section(page: Path, text: str, begin: str, end: str) -> None:
    """Write `text` between two marks of a page. A page without the marks gets a section at its end; a missing page is created."""
    before = page.read_text() if page.exists() else f"# {page.stem}\n"
    if begin not in before:
        before = f"{before.rstrip()}\n\n## Rows of {PROGRAM.name}\n\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    page.write_text(f"{head}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}")


def conditions() -> str:
    """Return a sentence with the command, the date, the commit, the machine and the versions of a run that ends now."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    cpu = f"{os.cpu_count()} cores, {platform.machine()}, {torch.cpu.get_capabilities().get('cpu_name', '')}".rstrip(", ")
    command = " ".join(["python", f"benchmarks/{PROGRAM.name}", *sys.argv[1:]])
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"`{command}`, {datetime.now(UTC).date()}, commit {commit.stdout.strip() or 'unknown'}, {cpu}, "
        f"load average at the end {os.getloadavg()[0]:.1f}; {versions}."
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| row | ours | peer | ratio | bound | holds | beside |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        beside = ", ".join(f"{name.replace('_', ' ')} {format_figure(value)}" for name, value in row.beside.items())
        peer = "–" if row.peer is None else format_figure(row.peer)
        cells = (row.row, format_figure(row.ours), peer, format_figure(row.ratio), row.bound, "yes" if row.holds else "**no**", beside)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def format_figure(value: float) -> str:
    """Return four digits of a figure; counts from 10,000 on in full."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
