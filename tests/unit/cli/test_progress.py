"""Where no terminal is, long work tells how far it has come, seldom and with the time that is left."""

import io

import pytest
from rich.console import Console

from edgecompress.cli import session
from edgecompress.cli.session import ProgressLines


@pytest.fixture
def lines(monkeypatch):
    """(progress, what it printed, function that lets seconds pass)."""
    now = [0.0]
    monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
    printed = io.StringIO()

    def wait(seconds):
        now[0] += seconds

    return ProgressLines(Console(file=printed, width=200, markup=False)), printed, wait


def test_a_line_now_and_then_says_what_is_done_and_what_is_left(lines):
    progress, printed, wait = lines
    assert [item for item in progress(range(8), "exporting", 8) if wait(6) is None] == [*range(8)]
    assert printed.getvalue().splitlines() == [
        "    exporting: 2 of 8, about 36.0 s left",
        "    exporting: 4 of 8, about 24.0 s left",
        "    exporting: 6 of 8, about 12.0 s left",
    ]


def test_a_loop_inside_another_shares_its_seconds(lines):
    progress, printed, wait = lines
    for _ in progress("ab", "outer"):
        for _ in progress(range(3), "inner", 3):
            wait(4)
    assert printed.getvalue().splitlines() == ["    outer: 1", "    outer: 2"]


def test_quick_work_says_nothing(lines):
    progress, printed, wait = lines
    for _ in progress(range(100), "evaluating", 100):
        wait(0.05)
    assert printed.getvalue() == ""
