"""What a device is to the rest of edgecompress, and what a finished command is."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from edgecompress.errors import DeviceError
from edgecompress.records import DeviceInfo

MAX_OUTPUT_BYTES = 4 << 20
KILL_AFTER_S = 5
LINK_MARGIN_S = 15.0


class LinkLost(DeviceError):
    """The transport failed, not the command: worth one more try over a new connection."""


class Late(DeviceError):
    """Stopped because its time ran out; the link may have fallen silent."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. `returncode` is negative, or 128 + n, after death by signal n. Output is cleaned of control characters."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Device(Protocol):
    """A place that runs commands.

    Attributes:
        url: How it was named, e.g. `adb://SERIAL`.
        serial: What identifies it; two processes on one serial take turns.
        python: The interpreter that runs the runner there.
        base: A folder where a work folder can be made.
    """

    url: str
    serial: str
    python: str
    base: PurePosixPath

    def info(self) -> DeviceInfo: ...

    def push(self, local: Path, remote: PurePosixPath) -> None:
        """Copy a file there, mode 755 (a push from Windows loses it, and a runner must be executable)."""

    def pull(self, remote: PurePosixPath, local: Path, *, max_bytes: int) -> None:
        """Copy a file here; refuse one that is larger than `max_bytes`."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command there without input.

        Raises:
            DeviceError: The connection failed, or the time ran out; then the command was killed there.
        """

    def reconnect(self) -> None:
        """Make the connection anew, after `LinkLost` or `Late`.

        Raises:
            DeviceError: The device does not come back.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Closing:
    """Make a device usable in `with`; one without a link has nothing to connect anew."""

    def reconnect(self) -> None:
        return

    def close(self) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def clean(text: str, *, limit: int = MAX_OUTPUT_BYTES) -> str:
    """Return `text` without control, escape and bidirectional characters: a device must not draw on the user's terminal.

    Newlines and tabs are kept; everything else unprintable becomes "?"; at most `limit` characters.
    """
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text[:limit])


def last_lines(text: str, *, lines: int = 3) -> str:
    """Return the end of a command's output on one line, for a message."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])[-500:]


def remote_command(argv: Sequence[str], *, timeout_s: float) -> str:
    """Return `argv` quoted for a remote shell, under the far side's own `timeout`: a lost connection leaves no job behind."""
    return shlex.join(["timeout", "-k", str(KILL_AFTER_S), f"{timeout_s:g}", *argv])
