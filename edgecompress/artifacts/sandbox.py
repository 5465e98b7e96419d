"""Run a program in a process group of its own within a time and a memory limit; nothing of it outlives the call.

Memory is what the group holds that cannot be dropped (anonymous and shared pages, and what was swapped out), looked at ten times a second.
Not RLIMIT_AS: TensorFlow and XLA reserve tens of gigabytes of addresses that they never touch. Not a cgroup: making one needs rights that
users and containers rarely have.
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

MACHINE_SHARE: Final = 0.9  # of a machine with less memory than that: the rest is for whoever started us
POLL_S: Final = 0.1
HELD: Final = ("RssAnon:", "RssShmem:", "VmSwap:")


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
    """Start `argv`, which may load what it needs; give the function that sends it a message and waits for its end.

    Args:
        name: What errors call the program.

    That function takes the message for standard input and a time limit in seconds from then on, and returns the exit status, negative after
    death by a signal. It raises LimitReached. When the context is left, by whatever way, the program and all it started are dead.

    Raises:
        ToolchainError: It cannot be started.
        LimitReached: It was stopped; says at which limit.
    """
    try:
        process = subprocess.Popen(
            argv, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, cwd=cwd, env=environment, start_new_session=True
        )
    except OSError as error:
        raise ToolchainError(f"{argv[0]}: cannot be started ({error.strerror}); give the path of a Python 3.11 or newer") from error
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)  # a message that the pipe does not hold must not keep us from watching the clock

    def finish(message: bytes, timeout_s: float) -> int:
        _watch(process, memoryview(message), name, timeout_s=timeout_s, memory_gb=memory_gb)
        return process.returncode

    try:
        yield finish
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.wait()


def _watch(process: subprocess.Popen[bytes], unsent: memoryview, name: str, *, timeout_s: float, memory_gb: float) -> None:
    end = time.monotonic() + timeout_s
    allowed_gb = min(memory_gb, MACHINE_SHARE * physical_memory_bytes() / 1e9)
    while True:
        unsent = _send(process, unsent)
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


def _send(process: subprocess.Popen[bytes], unsent: memoryview) -> memoryview:
    """Write what the pipe takes and return the rest; close it behind the last byte, or when nobody reads."""
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
    """Return what a process group holds: the sum over its processes, each page as often as it is mapped."""
    if not Path("/proc/self/status").exists():  # macOS
        return _resident_bytes(group)
    processes = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return sum(_held_by(process) for process in processes if _is_in(process, group))


def _is_in(process: int, group: int) -> bool:
    try:
        return os.getpgid(process) == group
    except ProcessLookupError:
        return False


def _held_by(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(HELD))


def _resident_bytes(group: int) -> int:
    """Return the same as `ps` knows it, which also counts the pages of program files."""
    rows = subprocess.run(["ps", "-A", "-o", "pgid=,rss="], capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    return sum(int(rss) << 10 for pgid, rss in (row.split() for row in rows) if int(pgid) == group)
