"""Processes that tests start: none of them outlives pytest."""


def with_us(name="TERM"):
    """Return what to put before a command, so that it gets this signal when the thread that started it ends, by SIGKILL too."""
    return "setpriv", "--pdeathsig", name
