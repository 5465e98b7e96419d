"""Write the results of the comparison of allocators as Markdown tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from allocator_cells import AUTO, DENSE, ERRORS, Result, Score, mean
from allocator_tasks import TITLES
from rows import write_section

from edgecompress.planning.allocators import ALLOCATORS

BEGIN: Final = "<!-- accuracy against MACs: written by benchmarks/allocators.py -->"
END: Final = "<!-- end of accuracy against MACs -->"

Row = tuple[str, str, str, bool]  # allocator, method, losses, data-aware


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write the tables between their marks in a page; the rest of the page stays."""
    write_section(path, tables(results), BEGIN, END)


def tables(results: Sequence[Result]) -> str:
    """Return one table for each network and training, the longest training first, each after a sentence about its conditions."""
    trainings = sorted({(r.cell.epochs, r.cell.samples) for r in results}, reverse=True)
    parts = [
        table(title, group)
        for task, title in TITLES.items()
        for training in trainings
        if (group := [r for r in results if r.cell.task == task and (r.cell.epochs, r.cell.samples) == training])
    ]
    return "\n\n".join(parts)


def table(title: str, results: Sequence[Result]) -> str:
    ratios = sorted({r.cell.ratio for r in results if r.cell.allocator != DENSE}, reverse=True)
    rows = sorted({row_of(r) for r in results if r.cell.allocator != DENSE}, key=sort_key)
    grid = {(row, ratio): [r for r in results if row_of(r) == row and r.cell.ratio == ratio] for row in rows for ratio in ratios}
    plain = [row for row in rows if row == (row[0], AUTO, rows[0][2], False)]
    best = {ratio: max((mean(grid[row, ratio]).top1 for row in plain if grid[row, ratio]), default=0.0) for ratio in ratios}
    lines = [conditions(title, results), "", f"| | {' | '.join(f'{ratio:g}' for ratio in ratios)} |", f"|---|{'---|' * len(ratios)}"]
    for row in rows:
        entries = []
        for ratio in ratios:
            found = grid[row, ratio]
            entries.append(format_entry(found, bold=row in plain and mean(found).top1 == best[ratio]) if found else "")
        lines.append(f"| {row_title(row)} | {' | '.join(entries)} |")
    return "\n".join(lines)


def row_of(result: Result) -> Row:
    return result.cell.allocator, result.cell.method, result.cell.losses, result.cell.data_aware


def sort_key(row: Row) -> tuple[bool, int, str, str, bool]:
    allocator, method, losses, data_aware = row
    return method != AUTO or losses == ERRORS or data_aware, list(ALLOCATORS).index(allocator), losses, method, data_aware


def row_title(row: Row) -> str:
    allocator, method, losses, data_aware = row
    beside = [f"--method {method}"] * (method != AUTO) + [losses] * (losses == ERRORS) + ["--data-aware"] * data_aware
    return f"`{allocator}`{'' if not beside else ', ' + ', '.join(beside)}"


def format_entry(found: Sequence[Result], *, bold: bool) -> str:
    """Return accuracy and divergence before and after fine-tuning."""
    after = f"{100 * mean(found).top1:.2f}"
    return f"{format_score(mean(found, before=True))} → {f'**{after}**' if bold else after} ({mean(found).divergence:.3f})"


def format_score(score: Score) -> str:
    return f"{100 * score.top1:.1f} ({score.divergence:.2f})"


def conditions(title: str, results: Sequence[Result]) -> str:
    """Return a sentence about the training, the machines, the dates, and the accuracy of the dense network."""
    cell = results[0].cell
    seeds = len({r.cell.seed for r in results})
    dense = [r for r in results if r.cell.allocator == DENSE]
    beside = ""
    if dense:
        given, trained = (100 * mean(dense, before=before).top1 for before in (True, False))
        beside = f" The dense network: {given:.2f}, after the same training {trained:.2f}."
    training = f"{count_of(cell.epochs, 'epoch')} of {cell.samples:,} samples" if cell.epochs else "BatchNorm re-estimation alone"
    return (
        f"{title}, {training}, {count_of(seeds, 'seed')}, {results[0].tests:,} test images; "
        f"{join_sorted(r.machine for r in results)}; {join_sorted(r.date for r in results)}.{beside}"
    )


def count_of(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def join_sorted(items: Iterable[str]) -> str:
    return ", ".join(sorted(set(items)))
