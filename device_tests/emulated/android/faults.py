"""The faults of the emulated phone. A file holds the fault in force as one line, so that a test can switch it while the phone runs.

NAME                 in force until another line is written
NAME 1234            a name of MOMENTS: once, when so many bytes have passed over the link, in both directions, since the line was written
NAME 50ms            a name of MOMENTS: once, so long after a runner was started
"""

import os

STATES = ("unauthorized", "offline")
STORAGE = ("no-space", "read-only", "noexec", "partial-file")
RUNS = ("drop-mid-push", "drop-mid-shell", "stall")
MOMENTS = ("drop", "freeze", "kill", "die")  # the link breaks; it falls silent; the runner is killed; the device is gone
FAULT_NAMES = ("none", *STATES, *STORAGE, *RUNS, *MOMENTS)


class Faults:
    """The fault in force, read from the file `fault` in `folder` whenever it matters, also from where that folder cannot be named."""

    def __init__(self, folder, line):
        self.folder, self.line, self.passed = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), "", 0
        self._write(line)

    def name(self):
        return self._words()[0]

    def on(self, name):
        return self.name() == name

    def count(self, size):
        """Count bytes of the link; return (which of MOMENTS is now or "", how many of these bytes still pass)."""
        name, *rest = self._words()
        if name not in MOMENTS or rest[0].endswith("ms"):
            return "", size
        left = int(rest[0]) - self.passed
        self.passed += size
        if left > size:
            return "", size
        self.end()
        return name, max(0, left)

    def after_start(self):
        """Return (which of MOMENTS, seconds after the start of a runner), or None."""
        name, *rest = self._words()
        return (name, int(rest[0][:-2]) / 1e3) if name in MOMENTS and rest[0].endswith("ms") else None

    def end(self):
        self._write("none")

    def _words(self):
        with open("fault", opener=self._open) as file:
            line = file.read()
        if line != self.line:
            self.line, self.passed = line, 0
        return line.split() or ["none"]

    def _write(self, line):
        with open("fault", "w", opener=self._open) as file:
            file.write(line)

    def _open(self, name, flags):
        return os.open(name, flags, mode=0o644, dir_fd=self.folder)
