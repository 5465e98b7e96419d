"""Processes that tests start: none of them outlives pytest."""

# Before a command: it is told to end when the thread that started it ends, by SIGKILL too.
WITH_US = ("setpriv", "--pdeathsig", "TERM")
