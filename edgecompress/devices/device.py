"""The interface of a device, the result of a command on it, and the errors that every transport raises."""

import math
import shlex
import signal
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
ENDED_BY_LIMIT: Final = {-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGKILL}


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


# Prints how the `timeout` there is called: GNU's and toybox's, BusyBox's from 1.30 on, BusyBox's before; "none" without one. What it
# prints counts and not how it exits, since toybox 0.8.9 exits with 127 when the command ends very soon.
FIND_TIMEOUT_SCRIPT: Final = f"""
for how in '-k {KILL_AFTER_S} 9' '9' '-t 9'; do
  [ "$(timeout $how echo yes 2>/dev/null)" != yes ] || {{ echo "timeout ${{how% 9}}"; exit; }}
done
echo 'timeout none'
"""
# Does the same with the shell alone: ends the command after $1 seconds, and kills it $2 seconds later.
WATCH_SCRIPT: Final = """
limit=$1 more=$2; shift 2
exec 3<&0
"$@" <&3 3<&- & job=$!
exec 3<&-
(
  trap 'kill $nap; exit' TERM
  sleep "$limit" & nap=$!; wait $nap; kill $job
  sleep "$more" & nap=$!; wait $nap; kill -9 $job
) >/dev/null 2>&1 &
watch=$!
wait $job; status=$?
kill $watch 2>/dev/null
exit $status
"""
TIMEOUT_FORMS: Final = {f"-k {KILL_AFTER_S}": ("timeout", "-k", str(KILL_AFTER_S)), "9": ("timeout",), "-t": ("timeout", "-t"), "none": ()}


def parse_timeout_form(text: str) -> tuple[str, ...]:
    """Return the words that begin a limited command there, from what `FIND_TIMEOUT_SCRIPT` printed; () where no `timeout` is."""
    told = [line.removeprefix("timeout ").strip() for line in text.splitlines() if line.startswith("timeout ")]
    return TIMEOUT_FORMS.get(told[-1], ()) if told else ()


def limit_command(argv: Sequence[str], *, timeout_s: float, form: Sequence[str]) -> list[str]:
    """Return `argv` limited in time by the far side itself, so that a lost link leaves no job behind.

    Args:
        form: The result of `parse_timeout_form`.
    """
    whole = str(math.ceil(timeout_s))  # the `timeout` of BusyBox takes no fractions
    if not form:
        return ["sh", "-c", WATCH_SCRIPT, "sh", whole, str(KILL_AFTER_S), *argv]
    return [*form, f"{timeout_s:g}" if "-k" in form else whole, *argv]


def is_late(returncode: int, spent_s: float, timeout_s: float) -> bool:
    """Tell whether a limited command was stopped by its limit; not every `timeout` exits with 124 then, some pass on the signal."""
    return returncode == 124 or (spent_s >= timeout_s and returncode in ENDED_BY_LIMIT)


def transfer_timeout_s(size_bytes: int, min_bytes_per_s: float) -> float:
    """Return how long the transfer of a file may take over a link that carries at least `min_bytes_per_s`."""
    return TRANSFER_BASE_S + size_bytes / min_bytes_per_s


REFUSAL_REMEDIES: Final = {
    "No space left": "free some space there (see `df`) and run it again",
    "Read-only file system": "the storage there is mounted read-only; restart the device, and look for a disk error if it stays so",
    "Permission denied": "you may not write there; remove what an earlier run as root left, or restart the device",
}


def find_refusal_remedy(said: str) -> str:
    """Return what to do where the kernel of a device refused to write a file; "" for any other message."""
    return next((remedy for sign, remedy in REFUSAL_REMEDIES.items() if sign in said), "")


def timeout_error(subject: str, argv: Sequence[str], timeout_s: float) -> CommandTimeout:
    """Return the error for a command that was stopped because its time ran out."""
    command = sanitize(shlex.join(argv), limit=200)
    return CommandTimeout(f"{subject}: {command} did not finish within {timeout_s:g} s and was stopped; allow more time or ask for less")


def oversize_error(url: str, remote: PurePosixPath, size: int, max_bytes: int) -> DeviceError:
    """Return the error for a file on a device that is larger than the caller allows."""
    return DeviceError(f"{url}: {remote.name} has {size} bytes, more than the {max_bytes} allowed; the runner there misbehaves")
