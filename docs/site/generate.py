"""Write the generated pages of docs/: tables of rooms and of kinds of outputs, commands, options, records, and the files of a run.

`python docs/site/generate.py` writes them; with `--check` it names the pages that are not up to date and exits with 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import formats_page
import kinds_table
import records_page
import rooms

from edgecompress.cli.reference import make_pages

DOCS = Path(__file__).resolve().parents[1]


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its path."""
    design, outputs = DOCS / "design.md", DOCS / "guide" / "outputs-and-metrics.md"
    return {
        design: rooms.insert_tables(design.read_text()),
        outputs: kinds_table.insert_table(outputs.read_text()),
        DOCS / "reference" / "records.md": records_page.render(),
        DOCS / "reference" / "formats.md": formats_page.render(),
        **{DOCS / "reference" / name: text for name, text in make_pages().items()},
    }


def main() -> None:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)}: not what its generator gives; run `python docs/site/generate.py`")
        sys.exit(bool(stale))
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
