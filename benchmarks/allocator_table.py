"""The table of the comparison of allocators, from its results, as Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from allocator_cells import AUTO, DENSE, ERRORS, Result, Score, mean
from allocator_tasks import TITLES

from edgecompress.planning.allocators import ALLOCATORS

BEGIN: Final = "<!-- accuracy against MACs: written by benchmarks/allocators.py -->"
END: Final = "<!-- end of accuracy against MACs -->"

Row = tuple[str, str, str, bool]  # allocator, method, losses, data-aware


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write the tables between their marks in a page, which stays as it is otherwise."""
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{tables(results)}\n\n{END}{rest.partition(END)[2]}")


def tables(results: Sequence[Result]) -> str:
    """Return one table for each network and training, the longest first, after what it was made with."""
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
    rows = sorted({row_of(r) for r in results if r.cell.allocator != DENSE}, key=order)
    grid = {(row, ratio): [r for r in results if row_of(r) == row and r.cell.ratio == ratio] for row in rows for ratio in ratios}
    plain = [row for row in rows if row == (row[0], AUTO, rows[0][2], False)]
    best = {ratio: max((mean(grid[row, ratio]).top1 for row in plain if grid[row, ratio]), default=0.0) for ratio in ratios}
    lines = [told(title, results), "", f"| | {' | '.join(f'{ratio:g}' for ratio in ratios)} |", f"|---|{'---|' * len(ratios)}"]
    for row in rows:
        entries = []
        for ratio in ratios:
            found = grid[row, ratio]
            entries.append(entry(found, bold=row in plain and mean(found).top1 == best[ratio]) if found else "")
        lines.append(f"| {named(row)} | {' | '.join(entries)} |")
    return "\n".join(lines)


def row_of(result: Result) -> Row:
    return result.cell.allocator, result.cell.method, result.cell.losses, result.cell.data_aware


def order(row: Row) -> tuple[bool, int, str, str, bool]:
    allocator, method, losses, data_aware = row
    return method != AUTO or losses == ERRORS or data_aware, list(ALLOCATORS).index(allocator), losses, method, data_aware


def named(row: Row) -> str:
    allocator, method, losses, data_aware = row
    beside = [f"--method {method}"] * (method != AUTO) + [losses] * (losses == ERRORS) + ["--data-aware"] * data_aware
    return f"`{allocator}`{'' if not beside else ', ' + ', '.join(beside)}"


def entry(found: Sequence[Result], *, bold: bool) -> str:
    """Return accuracy and divergence, before fine-tuning and after."""
    after = f"{100 * mean(found).top1:.2f}"
    return f"{shown(mean(found, before=True))} → {f'**{after}**' if bold else after} ({mean(found).divergence:.3f})"


def shown(score: Score) -> str:
    return f"{100 * score.top1:.1f} ({score.divergence:.2f})"


def told(title: str, results: Sequence[Result]) -> str:
    """Return what was trained how, where and when, and what the dense network has."""
    cell = results[0].cell
    seeds = len({r.cell.seed for r in results})
    dense = [r for r in results if r.cell.allocator == DENSE]
    beside = ""
    if dense:
        given, trained = (100 * mean(dense, before=before).top1 for before in (True, False))
        beside = f" The dense network: {given:.2f}, after the same training {trained:.2f}."
    training = f"{counted(cell.epochs, 'epoch')} of {cell.samples:,} samples" if cell.epochs else "BatchNorm re-estimation alone"
    return (
        f"{title}, {training}, {counted(seeds, 'seed')}, {results[0].tests:,} test images; "
        f"{listed(r.machine for r in results)}; {listed(r.date for r in results)}.{beside}"
    )


def counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def listed(items: Iterable[str]) -> str:
    return ", ".join(sorted(set(items)))
