"""The table of the package's rooms, read from the source, and the layers, read from the contracts of import-linter."""

import ast
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parents[2] / "edgecompress"
REPOSITORY: Final = PACKAGE.parent
ROUNDING: Final = 100  # lines are rounded, so that a small change of the code leaves the page as it is


def insert_tables(page: str) -> str:
    """Return the page with the table of rooms and the list of layers between their marks."""
    for name, text in (("rooms", table()), ("layers", layers())):
        begin, end = f"<!-- {name}: written by docs/site/rooms.py -->", f"<!-- end of {name} -->"
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def layers() -> str:
    """Return the layers of the package as a block of text, the highest first."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    return "\n".join(["```text", *contract["layers"], "```"])


def table() -> str:
    """Return the rooms, then the modules at the root, as Markdown."""
    files = source_files()
    imports = {room: imported_rooms(room, paths) for room, paths in files.items()}
    importers: dict[str, set[str]] = defaultdict(set)
    for room, others in imports.items():
        for other in others:
            importers[other].add(room)
    lines = ["| room | files | lines | imports | imported by |", "|---|---|---|---|---|"]
    for room in sorted(files, key=lambda room: (not is_folder(room), room)):
        count = sum(len(path.read_text().splitlines()) for path in files[room])
        title = f"`{room}/`" if is_folder(room) else f"`{room}`"
        cells = (
            title,
            str(len(files[room])),
            f"{round(count / ROUNDING) * ROUNDING or '< 100'}",
            join(imports[room]),
            str(len(importers[room])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def source_files() -> dict[str, list[Path]]:
    """Return the Python files of each room, and of each module at the root, by name."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0]
        found[first.removesuffix(".py")].append(path)
    return found


def imported_rooms(room: str, paths: list[Path]) -> set[str]:
    """Return the other rooms that the files of a room import."""
    known = set(source_files())
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("edgecompress.")]
    return {part[1] for part in parts if part[1] in known} - {room}


def is_folder(room: str) -> bool:
    return (PACKAGE / room).is_dir()


def join(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "–"
