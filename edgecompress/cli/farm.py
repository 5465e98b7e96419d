"""`bench --device pool:LABEL`: a table that lives while the farm runs, and what became of each device at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table

from edgecompress.cli.session import console
from edgecompress.cli.tables import table
from edgecompress.devices.text import sanitize

if TYPE_CHECKING:
    from edgecompress.devices.farm import Schedule
    from edgecompress.devices.farm.run import OnChange

STATE_LENGTH = 100


def lanes(schedule: "Schedule") -> Table:
    """One row a device: what it does, on which artifact, how many jobs it has done, how many failures in a row it has had."""
    rows = []
    for lane in schedule.devices:
        files = ", ".join(Path(file).name for file in lane.job.files) if lane.job else "–"
        state = f"quarantined: {lane.quarantine}" if lane.quarantine else lane.state
        rows.append((lane.name, files, str(lane.done), str(lane.failures), sanitize(state, limit=STATE_LENGTH).replace("\n", " ")))
    total, waiting = len(schedule.jobs), len(schedule.waiting)
    done, failed = (sum(bool(getattr(task, name)) for task in schedule.jobs) for name in ("done_by", "error"))
    made = table(("device", "artifact", "done", "failures", "state"), rows, left=2)
    made.columns[4].justify, made.columns[4].no_wrap = "left", False
    made.caption = f"{done} of {total} jobs done, {waiting} waiting, {failed} failed"
    made.caption_justify = "left"
    return made


@contextmanager
def shown() -> Iterator["OnChange"]:
    """Yield what draws the table anew on a terminal; when piped, and at the end, it is printed once."""
    notes = console(stderr=True)
    last: list[Schedule] = []
    # Drawn from this thread alone, which also starts the devices' processes.
    with Live(console=notes, auto_refresh=False, transient=True) if notes.is_terminal else _nothing() as live:

        def watch(schedule: "Schedule") -> None:
            last[:] = [schedule]
            if live is not None:
                live.update(lanes(schedule), refresh=True)

        try:
            yield watch
        finally:
            if live is not None:
                live.stop()
            for schedule in last:
                notes.print(lanes(schedule))


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
