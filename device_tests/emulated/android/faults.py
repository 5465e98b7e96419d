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
        self._write_line(line)

    def current_name(self):
        return self._read_words()[0]

    def is_on(self, name):
        return self.current_name() == name

    def count_bytes(self, size):
        """Count bytes of the link; return (the fault of MOMENTS that happens now or "", how many of these bytes still pass)."""
        name, *rest = self._read_words()
        if name not in MOMENTS or rest[0].endswith("ms"):
            return "", size
        left = int(rest[0]) - self.passed
        self.passed += size
        if left > size:
            return "", size
        self.end_current()
        return name, max(0, left)

    def delayed_fault(self):
        """Return (name, seconds after the start of a runner) of a fault of MOMENTS that waits for a runner, or None."""
        name, *rest = self._read_words()
        return (name, int(rest[0][:-2]) / 1e3) if name in MOMENTS and rest[0].endswith("ms") else None

    def end_current(self):
        self._write_line("none")

    def _read_words(self):
        with open("fault", opener=self._open_in_folder) as file:
            line = file.read()
        if line != self.line:
            self.line, self.passed = line, 0
        return line.split() or ["none"]

    def _write_line(self, line):
        with open("fault", "w", opener=self._open_in_folder) as file:
            file.write(line)

    def _open_in_folder(self, name, flags):
        return os.open(name, flags, mode=0o644, dir_fd=self.folder)
