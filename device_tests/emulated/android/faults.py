"""What can go wrong with the emulated end. The fault in force is a line of a file, so that a test switches it while the end runs.

NAME                 until another line is written
NAME 1234            of MOMENTS: once, when so many bytes of the link, both ways together, have passed since the line was written
NAME 50ms            of MOMENTS: once, so long after a runner was started
"""

STATES = ("unauthorized", "offline")
STORAGE = ("no-space", "read-only", "noexec", "partial-file")
RUNS = ("drop-mid-push", "drop-mid-shell", "stall")
MOMENTS = ("drop", "freeze", "kill", "die")  # the link breaks; it falls silent; the runner is killed; the device is gone
NAMES = ("none", *STATES, *STORAGE, *RUNS, *MOMENTS)


class Faults:
    """The fault in force, read from `path` whenever it matters."""

    def __init__(self, path, line):
        self.path, self.line, self.passed = path, "", 0
        path.write_text(line)

    def on(self, name):
        return self._words()[0] == name

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
        self.path.write_text("none")

    def _words(self):
        if (line := self.path.read_text()) != self.line:
            self.line, self.passed = line, 0
        return line.split() or ["none"]
