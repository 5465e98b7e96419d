"""Run a program in a process group of its own, within limits of time and memory; none of its processes outlives the call.

The memory of a group is its pages that the system cannot drop: anonymous, shared and swapped ones, counted ten times a second. RLIMIT_AS
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
POLL_S: Final = 0.1
UNDROPPABLE: Final = ("RssAnon:", "RssShmem:", "VmSwap:")


class LimitReached(ToolchainError):
    """The program was stopped at its time or memory limit."""


Finish = Callable[[bytes, float], int]


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
) -> Iterator[Finish]:
    """Start a program; yield the function that sends it a message and waits for its end.

    That function takes the message for standard input and a time limit in seconds, and returns the exit status, which is negative after
    death by a signal. It raises LimitReached. When the context ends, the program and all processes that it started are killed.

    Args:
        argv: The command line; no shell reads it.
        name: Name of the program in messages.
        memory_gb: Limit on the memory of the whole process group.

    Raises:
        ToolchainError: The program cannot be started.
        LimitReached: The program was stopped at its limit of time or memory.
    """
    try:
        process = subprocess.Popen(
            argv, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, cwd=cwd, env=environment, start_new_session=True
        )
    except OSError as error:
        raise ToolchainError(f"{argv[0]}: cannot be started ({error.strerror}); give the path of a Python 3.11 or newer") from error
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)  # writing a long message must not block the watch on the limits

    def finish(message: bytes, timeout_s: float) -> int:
        _wait_within_limits(process, memoryview(message), name, timeout_s=timeout_s, memory_gb=memory_gb)
        return process.returncode

    try:
        yield finish
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.wait()


def _wait_within_limits(process: subprocess.Popen[bytes], unsent: memoryview, name: str, *, timeout_s: float, memory_gb: float) -> None:
    end = time.monotonic() + timeout_s
    allowed_gb = min(memory_gb, MAX_MACHINE_FRACTION * physical_memory_bytes() / 1e9)
    while True:
        unsent = _send_some(process, unsent)
        try:
            process.wait(timeout=max(0.0, min(POLL_S, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            pass
        else:
            return
        if (held_gb := group_memory_bytes(process.pid) / 1e9) > allowed_gb:
            machine = "" if allowed_gb == memory_gb else " on this machine"
            raise LimitReached(f"{name}: held {held_gb:.3g} GB of memory, {allowed_gb:.3g} GB allowed{machine}, and was stopped")
        if time.monotonic() >= end:
            raise LimitReached(f"{name}: not finished after {timeout_s:g} s and was stopped")


def _send_some(process: subprocess.Popen[bytes], unsent: memoryview) -> memoryview:
    """Write as much as the pipe takes and return the rest; close the pipe after the last byte, or where the program has closed it."""
    assert process.stdin is not None
    try:
        while unsent and (count := process.stdin.write(unsent)):
            unsent = unsent[count:]
    except BrokenPipeError:
        unsent = unsent[:0]
    if not unsent:
        process.stdin.close()
    return unsent


def physical_memory_bytes() -> int:
    """Return the physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
