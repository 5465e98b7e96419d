"""The one form of table on a terminal."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

TEXT_COLUMNS: Final = {"why", "model", "os", "cpu", "governor", "labels", "state", "read from"}


def make_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1, fold: Collection[str] = ()) -> Table:
    """Return a borderless table; the first `text_columns` columns are aligned to the left, as are those of `TEXT_COLUMNS`.

    Where a terminal is too narrow, the columns of `fold` take several lines, and those of `TEXT_COLUMNS` among the others.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, heading in enumerate(headings):
        is_text = i < text_columns or heading in TEXT_COLUMNS
        is_fixed = heading not in fold and (not is_text or i < text_columns)
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=is_fixed,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
