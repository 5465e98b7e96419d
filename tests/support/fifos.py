"""Named pipes by which a test learns that a process runs, and that nothing of it runs any more."""

import os
import select


def open_when_written(fifo, process):
    """Return the pipe, open for reading, as soon as somebody has written to it; fail when `process` ends before."""
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # a blocking open would wait for ever for a writer that died
    while not select.select([descriptor], [], [], 0.1)[0]:
        assert process.poll() is None, f"status {process.returncode}: {process.stderr.read() if process.stderr else ''}"
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")
