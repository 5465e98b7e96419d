"""Where the repository and its tests lie, and which Python files they hold."""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1]
REPOSITORY: Final = TESTS.parent
PACKAGE: Final = REPOSITORY / "edgecompress"
PROGRAMS: Final = ("edgecompress", "converters", "device_tests", "examples", "benchmarks")  # folders whose files run outside the tests


def python_files(*folders: str) -> list[Path]:
    """Return the Python files in these folders of the repository, in order."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
