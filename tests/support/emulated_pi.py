"""Raspberry Pis of this machine's own (device_tests/emulated/pi), each a process in the foreground that takes everything with it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import with_us
from support.require import unavailable

PROGRAM = Path(__file__).parents[2] / "device_tests" / "emulated" / "pi"
STOP_S = 200


@contextmanager
def emulated_pi(log, *options):
    """Yield (what the device says of itself, the process that holds it); without what that needs skip, or fail in CI."""
    with log.open("w+") as errors:
        argv = [*with_us(), sys.executable, PROGRAM, "run", *options]
        environment = {**os.environ, "TMPDIR": str(log.parent)}  # after SIGKILL its keys stay there
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            line = process.stdout.readline()
            if not line:
                said = log.read_text().strip()
                (unavailable if process.wait(STOP_S) == 1 and "Traceback" not in said else pytest.fail)(said)
            yield json.loads(line), process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
            process.stdout.close()


def trust(described, monkeypatch):
    """Make the device's HOME ours, as a person does who was told its JSON; no agent is asked."""
    monkeypatch.setenv("HOME", described["home"])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return described["url"]


@pytest.fixture(scope="session")
def pi_device(tmp_path_factory):
    """The 64-bit device, started once."""
    with emulated_pi(tmp_path_factory.mktemp("pi") / "log") as (described, _):
        yield described


@pytest.fixture
def pi(pi_device, monkeypatch):
    """The URL of the 64-bit device, trusted."""
    return trust(pi_device, monkeypatch)
