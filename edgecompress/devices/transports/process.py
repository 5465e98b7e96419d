"""Run a program on this machine within limits of time and output."""

import logging
import os
import resource
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from edgecompress.devices.device import CompletedCommand, timeout_error
from edgecompress.devices.text import MAX_OUTPUT_BYTES, sanitize
from edgecompress.errors import DeviceError

log = logging.getLogger(__name__)


def run_program(
    argv: Sequence[str],
    *,
    timeout_s: float,
    subject: str,
    env: Mapping[str, str] | None = None,
    max_file_bytes: int | None = None,
) -> CompletedCommand:
    """Run `argv` in its own process group without input; the group is killed when its time is up, or when this process is interrupted.

    Args:
        subject: The first word of messages.
        max_file_bytes: The largest file the program may write.

    Raises:
        DeviceError: The program was not found, did not finish within `timeout_s`, or printed more than 4 MiB.
    """
    log.debug("run %s", shlex.join(argv))
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True
        )
    except OSError as error:
        raise DeviceError(f"{subject}: {argv[0]} cannot be started: {error.strerror}; check that it is installed") from error
    if max_file_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    assert process.stdout is not None
    assert process.stderr is not None
    sinks = (bytearray(), bytearray())
    threads = [
        threading.Thread(target=_drain_stream, args=(process, stream, sink), daemon=True)
        for stream, sink in zip((process.stdout, process.stderr), sinks, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        returncode = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise timeout_error(subject, argv, timeout_s) from error
    finally:
        _kill_group(process)
        process.wait()
        for thread in threads:
            thread.join(2.0)  # a daemon that the program left behind (adb's server) may hold the pipe open
    if any(len(sink) > MAX_OUTPUT_BYTES for sink in sinks):
        raise DeviceError(f"{subject}: {argv[0]} printed more than {MAX_OUTPUT_BYTES >> 20} MiB and was stopped; is it the right program?")
    stdout, stderr = (sanitize(bytes(sink).decode(errors="replace")) for sink in sinks)
    return CompletedCommand(tuple(argv), returncode, stdout, stderr)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes of the group that still run, also children of a leader that has ended already."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _drain_stream(process: subprocess.Popen[bytes], stream: IO[bytes], sink: bytearray) -> None:
    with stream:
        while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
            sink += chunk
            if len(sink) > MAX_OUTPUT_BYTES:
                _kill_group(process)
                return
