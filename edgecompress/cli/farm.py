"""`--device pool:LABEL`: a table that is drawn anew while the farm runs, and printed once at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live

from edgecompress.cli.session import make_console
from edgecompress.cli.views.devices import tabulate_farm

if TYPE_CHECKING:
    from edgecompress.devices.farm import Schedule
    from edgecompress.devices.farm.run import OnChange


@contextmanager
def show_farm() -> Iterator["OnChange"]:
    """Yield the function that draws the table; when stderr is no terminal the table is printed at the end only."""
    notes = make_console(stderr=True)
    last: list[Schedule] = []
    # The table is drawn from this thread alone, which also starts the devices' processes.
    live = Live(console=notes, auto_refresh=False, transient=True) if notes.is_terminal else None

    def draw(schedule: "Schedule") -> None:
        last[:] = [schedule]
        if live is not None:
            live.update(tabulate_farm(schedule), refresh=True)

    if live is not None:
        live.start()
    try:
        yield draw
    finally:
        if live is not None:
            live.stop()
        for schedule in last:
            notes.print(tabulate_farm(schedule))
