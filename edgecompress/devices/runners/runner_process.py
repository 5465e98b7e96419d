"""A runner on this machine that stays: it runs one file after another, so that the runtime of a format is loaded once."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgecompress import toolchains
from edgecompress.devices.device import CompletedCommand, timeout_error
from edgecompress.devices.text import MAX_OUTPUT_BYTES, sanitize
from edgecompress.errors import DeviceError

SUBJECT: Final = "local://"


class RunnerProcess:
    """The runner of this checkout in a process of its own, for files of one format. A request that fails ends it. Close it.

    Attributes:
        is_alive: Whether it takes another request.

    Raises:
        DeviceError: The interpreter cannot be started.
    """

    def __init__(self) -> None:
        self._argv = (sys.executable, str(toolchains.runner()), "-")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                self._argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, start_new_session=True
            )
        except OSError as error:
            raise DeviceError(f"{SUBJECT}: {self._argv[0]} cannot be started: {error.strerror}; check that it is installed") from error
        self.is_alive = True

    def run(self, request: Path, *, timeout_s: float) -> CompletedCommand:
        """Let the runner carry out the request in a file, and return the exit status that a run of its own would have had.

        Raises:
            DeviceError: It did not finish within `timeout_s`, or printed more than 4 MiB.
        """
        assert self._process.stdin is not None
        argv = (*self._argv[:-1], str(request))
        self.is_alive, start = False, self._stderr.seek(0, os.SEEK_END)
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{request}\n".encode())
        answer = self._read_line(time.monotonic() + timeout_s, argv, timeout_s)
        self.is_alive = answer == b"0\n"
        returncode = 0 if self.is_alive else self._process.wait()
        if self._stderr.seek(0, os.SEEK_END) - start > MAX_OUTPUT_BYTES:
            raise DeviceError(f"{SUBJECT}: the runner printed more than {MAX_OUTPUT_BYTES >> 20} MiB; is it the right program?")
        self._stderr.seek(start)
        return CompletedCommand(argv, returncode, "", sanitize(self._stderr.read().decode(errors="replace")))

    def kill(self) -> None:
        """Kill the runner at once; whoever waits for it is told. Any thread may call this."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the runner, if it runs."""
        self.is_alive = False
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _read_line(self, end: float, argv: tuple[str, ...], timeout_s: float) -> bytes:
        """Return the next line of standard output, or what there is of it when the runner has ended."""
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                self.kill()
                raise timeout_error(SUBJECT, argv, timeout_s)
            if not (more := os.read(self._process.stdout.fileno(), 1 << 12)):
                break
            line += more
        return line
