"""The interface of a device, the result of a command on it, and the errors that every transport raises."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Protocol, Self

from edgecompress.devices.text import sanitize
from edgecompress.errors import DeviceError
from edgecompress.records import DeviceInfo

KILL_AFTER_S: Final = 5  # `timeout` sends SIGKILL this long after a SIGTERM that was ignored
LINK_MARGIN_S: Final = 15.0  # the far side ends a command by itself; this much later the link counts as silent
TRANSFER_BASE_S: Final = 60.0  # the shortest time limit of a transfer, which covers connecting and a busy disk


class LinkLost(DeviceError):
    """The transport failed, not the command; the same work may succeed over a new connection."""


class CommandTimeout(DeviceError):
    """A command was stopped because its time ran out; the link may have fallen silent."""


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """A command that ended. `returncode` is negative, or 128 + n, after death by signal n. Output is sanitized text."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Device(Protocol):
    """A machine that runs commands and exchanges files with this one.

    Attributes:
        url: The address it was opened by, e.g. `adb://SERIAL`.
        serial: The identity of the machine; two processes that use one serial take turns.
        python: The interpreter that runs the runner on the device.
        base: A folder on the device in which work folders can be made.
    """

    url: str
    serial: str
    python: str
    base: PurePosixPath

    def info(self) -> DeviceInfo:
        """Return what the device says about itself."""

    def push(self, local: Path, remote: PurePosixPath) -> None:
        """Copy a file to the device with mode 755 (a push from Windows loses the mode, and a runner must be executable)."""

    def pull(self, remote: PurePosixPath, local: Path, *, max_bytes: int) -> None:
        """Copy a file from the device; refuse one that is larger than `max_bytes`."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        """Run a command on the device without input.

        Raises:
            DeviceError: The connection failed, or the time ran out; then the command was killed on the device.
        """

    def reconnect(self) -> None:
        """Replace the connection after `LinkLost` or `CommandTimeout`.

        Raises:
            DeviceError: The device does not come back.
        """

    def close(self) -> None:
        """Close the connection; a closed device may be closed again."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class DeviceBase:
    """The `with` statement for transports, and `reconnect` and `close` for those that hold no connection."""

    def reconnect(self) -> None:
        return

    def close(self) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def build_remote_command(argv: Sequence[str], *, timeout_s: float) -> str:
    """Return `argv` quoted for a remote shell and limited by the far side's own `timeout`, so that a lost link leaves no job behind."""
    return shlex.join(["timeout", "-k", str(KILL_AFTER_S), f"{timeout_s:g}", *argv])


def transfer_timeout_s(size_bytes: int, min_bytes_per_s: float) -> float:
    """Return how long the transfer of a file may take over a link that carries at least `min_bytes_per_s`."""
    return TRANSFER_BASE_S + size_bytes / min_bytes_per_s


def timeout_error(subject: str, argv: Sequence[str], timeout_s: float) -> CommandTimeout:
    """Return the error for a command that was stopped because its time ran out."""
    command = sanitize(shlex.join(argv), limit=200)
    return CommandTimeout(f"{subject}: {command} did not finish within {timeout_s:g} s and was stopped; allow more time or ask for less")


def oversize_error(url: str, remote: PurePosixPath, size: int, max_bytes: int) -> DeviceError:
    """Return the error for a file on a device that is larger than the caller allows."""
    return DeviceError(f"{url}: {remote.name} has {size} bytes, more than the {max_bytes} allowed; the runner there misbehaves")
