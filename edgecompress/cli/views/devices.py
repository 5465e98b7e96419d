"""Views of devices, of a farm at work, and of the presets of targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from edgecompress.cli.views.tables import make_table
from edgecompress.devices.probe import NOTABLE_CPU_FEATURES
from edgecompress.devices.text import sanitize
from edgecompress.records import DeviceInfo
from edgecompress.reporting.numbers import UNKNOWN, format_celsius, format_size
from edgecompress.targets import TARGETS

if TYPE_CHECKING:
    from edgecompress.devices.farm import Schedule

MAX_STATE_LENGTH: Final = 100  # a longer message of a device would fill the screen


def tabulate_devices(found: Sequence[DeviceInfo]) -> Table:
    """Return a row for each device, without columns that no device fills; of CPU features only those that runtimes have kernels for."""
    columns = {
        "device": [f"{d.name} {d.url}" for d in found],
        "state": [d.state for d in found],
        "model": [", ".join(dict.fromkeys(filter(None, (d.model, d.soc)))) for d in found],
        "cpu": [" ".join((d.abi, *(name for name in NOTABLE_CPU_FEATURES if name in d.cpu_features))) for d in found],
        "os": [d.os for d in found],
        "governor": [d.governor for d in found],
        "°C": ["" if d.temperature_c is None else format_celsius(d.temperature_c) for d in found],
        "free": ["" if d.free_bytes is None else format_size(d.free_bytes) for d in found],
        "labels": [", ".join(d.labels) for d in found],
    }
    shown = {
        heading: [to_one_line(cell) or UNKNOWN for cell in cells] for heading, cells in columns.items() if any(map(to_one_line, cells))
    }
    return make_table(tuple(shown), zip(*shown.values(), strict=True), text_columns=2)


def list_problems(found: Sequence[DeviceInfo]) -> list[Text]:
    """Return a line for each device that cannot be used; the sentences would not fit into a column."""
    return [Text(to_one_line(f"{d.name}: {d.problem}" if d.name else d.problem)) for d in found if d.problem]


def to_one_line(text: str) -> str:
    """Return text from a device on one line, without anything that moves the cursor."""
    return sanitize(" ".join(text.split()))


def tabulate_farm(schedule: "Schedule") -> Table:
    """Return a row for each device of a farm: its artifact, the jobs that it has done, its failures in a row, its state."""
    rows = []
    for lane in schedule.devices:
        files = ", ".join(Path(file).name for file in lane.job.files) if lane.job else UNKNOWN
        state = f"quarantined: {lane.quarantine}" if lane.quarantine else lane.state
        rows.append((lane.name, files, str(lane.done), str(lane.failures), sanitize(state, limit=MAX_STATE_LENGTH).replace("\n", " ")))
    total, waiting = len(schedule.jobs), len(schedule.waiting)
    done, failed = (sum(bool(getattr(job, name)) for job in schedule.jobs) for name in ("done_by", "error"))
    table = make_table(("device", "artifact", "done", "failures", "state"), rows, text_columns=2)
    table.caption = f"{done} of {total} jobs done, {waiting} waiting, {failed} failed"
    table.caption_justify = "left"
    return table


def tabulate_targets() -> Table:
    """Return a row for each preset of `export --target`."""
    rows = [(name, ", ".join(f"{f} {s}" for f, s in t.outputs), str(t.rank_multiple), t.device) for name, t in TARGETS.items()]
    return make_table(("target", "artifacts", "rank multiple", "device"), rows, text_columns=2)
