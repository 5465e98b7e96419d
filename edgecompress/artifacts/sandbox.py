"""Run a program in a process group of its own, within limits of time and memory; none of its processes outlives the call.

The memory of a group is its pages that the system cannot drop: anonymous, shared and swapped ones, counted twenty times a second. RLIMIT_AS
would not do, since TensorFlow and XLA reserve tens of gigabytes of addresses that they never use. Neither would a cgroup, since users and
containers rarely have the right to make one.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from edgecompress.errors import ToolchainError

# A machine with less memory than the limit keeps a tenth for the processes that were there before.
MAX_MACHINE_FRACTION: Final = 0.9
POLL_S: Final = 0.05
UNDROPPABLE: Final = ("RssAnon:", "RssShmem:", "VmSwap:")


class LimitReached(ToolchainError):
    """The program was stopped at its time or memory limit."""


class TimeLimitReached(LimitReached):
    """The program was stopped at its time limit."""


class LimitedProcess:
    """A program in a process group of its own, whose memory is limited while it is waited for. Use `start_process`."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, memory_gb: float) -> None:
        self._process = process
        self._name = name
        self._memory_gb = memory_gb

    def exchange(self, message: bytes, timeout_s: float, *, is_answered: Callable[[], bool] | None = None) -> int | None:
        """Send a message to the program's standard input and wait for its answer.

        Args:
            is_answered: Whether the program has answered; None closes its standard input and waits for its end.

        Returns:
            The exit status of a program that has ended, negative after death by a signal; None for one that has answered and lives.

        Raises:
            LimitReached: The program reached its limit of time or memory, and must be stopped.
        """
        end, unsent = time.monotonic() + timeout_s, memoryview(message)
        allowed_gb = min(self._memory_gb, MAX_MACHINE_FRACTION * physical_memory_bytes() / 1e9)
        while True:
            unsent = self._send_some(unsent, is_last=is_answered is None)
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=max(0.0, min(POLL_S, end - time.monotonic())))
            if is_answered is not None and is_answered():
                return None
            if (held_gb := group_memory_bytes(self._process.pid) / 1e9) > allowed_gb:
                machine = "" if allowed_gb == self._memory_gb else " on this machine"
                raise LimitReached(f"{self._name}: held {held_gb:.3g} GB of memory, {allowed_gb:.3g} GB allowed{machine}, and was stopped")
            if time.monotonic() >= end:
                raise TimeLimitReached(f"{self._name}: not finished after {timeout_s:g} s and was stopped")

    def kill(self) -> None:
        """Kill the program and all processes that it started; whoever waits for it is told. Any thread may call this."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _send_some(self, unsent: memoryview, *, is_last: bool) -> memoryview:
        """Write as much as the pipe takes and return the rest; close the pipe after the last message, or where the program closed it."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            while unsent and (count := stdin.write(unsent)):
                unsent = unsent[count:]
        except BrokenPipeError:
            unsent, is_last = unsent[:0], True
        if not unsent and is_last:
            stdin.close()
        return unsent


@contextmanager
def start_process(
    argv: Sequence[str],
    *,
    name: str,
    stdout: IO[bytes],
    stderr: IO[bytes],
    cwd: Path,
    environment: Mapping[str, str],
    memory_gb: float,
) -> Iterator[LimitedProcess]:
    """Start a program and yield it; when the context ends, the program and all processes that it started are killed.

    Args:
        argv: The command line; no shell reads it.
        name: Name of the program in messages.
        memory_gb: Limit on the memory of the whole process group.

    Raises:
        ToolchainError: The program cannot be started.
    """
    try:
        process = subprocess.Popen(
            argv, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, cwd=cwd, env=environment, start_new_session=True
        )
    except OSError as error:
        raise ToolchainError(f"{argv[0]}: cannot be started ({error.strerror}); give the path of a Python 3.11 or newer") from error
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)  # writing a long message must not block the watch on the limits
    limited = LimitedProcess(process, name, memory_gb)
    try:
        yield limited
    finally:
        limited.kill()
        process.stdin.close()
        process.wait()


def physical_memory_bytes() -> int:
    """Return the physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes() -> int:
    """Return the memory of this machine that new programs can have; all of it where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # macOS
        return physical_memory_bytes()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), physical_memory_bytes())


def group_memory_bytes(group: int) -> int:
    """Return the memory of a process group: the sum over its processes, which counts a shared page once for each."""
    if not Path("/proc/self/status").exists():  # macOS
        return _resident_bytes(group)
    processes = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return sum(_process_memory_bytes(process) for process in processes if _is_in_group(process, group))


def _is_in_group(process: int, group: int) -> bool:
    try:
        return os.getpgid(process) == group
    except ProcessLookupError:
        return False


def _process_memory_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(UNDROPPABLE))


def _resident_bytes(group: int) -> int:
    """Return the resident memory of a process group by `ps`, which also counts the pages of program files."""
    rows = subprocess.run(["ps", "-A", "-o", "pgid=,rss="], capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    return sum(int(rss) << 10 for pgid, rss in (row.split() for row in rows) if int(pgid) == group)
