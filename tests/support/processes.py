"""Processes that tests start: none of them outlives pytest."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager


def with_us(name="TERM"):
    """Return what to put before a command, so that it gets this signal when the thread that started it ends, by SIGKILL too."""
    return "setpriv", "--pdeathsig", name


@contextmanager
def busy():
    """Keep every processor busy."""
    running = [subprocess.Popen([*with_us(), sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
