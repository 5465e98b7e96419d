"""Write the report of a run, as a page for people and as JSON for programs."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from edgecompress.files import write_atomically
from edgecompress.records import to_json
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import Report
from edgecompress.reporting.make_report import make_report
from edgecompress.reporting.render import render_report


def report(folder: Path, records: RunRecords) -> Report:
    """Write `report.json` and `report.html` into `folder`, and return the report.

    A section without data names the command that fills it.

    Raises:
        EdgeCompressError: The disk is full.
        ConfigError: The folder cannot be written.
    """
    found = make_report(
        records,
        # An absolute path would tell strangers the name of the user's home.
        run=folder.name if folder.is_absolute() else str(folder),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("edgecompress"),
    )
    # The page is rendered before the first file is written, so that both are from this call or neither is.
    page = render_report(found).encode()
    write_atomically(folder / "report.json", to_json(found))
    write_atomically(folder / "report.html", page)
    return found
