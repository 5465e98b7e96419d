"""The table of the kinds of outputs, from the table that judges them."""

from edgecompress.network.output_kinds import KINDS

BEGIN, END = "<!-- kinds: written by docs/site/kinds_table.py -->", "<!-- end of kinds -->"


def insert_table(page: str) -> str:
    """Return the page with the table of kinds between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def table() -> str:
    lines = ["| kind | what it is | what must be kept | at least | because |", "|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        bound = "–" if kind.min_kept is None else f"{kind.min_kept:.0%}"
        lines.append(f"| `{name}` | {kind.description} | {kind.kept.removeprefix('of ') or 'nothing'} | {bound} | {kind.reason} |")
    return "\n".join(lines)
