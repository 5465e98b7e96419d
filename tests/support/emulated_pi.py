"""Emulated Raspberry Pis (device_tests/emulated/pi), each in a foreground process whose end ends all of the device."""

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
    """Yield (the device's description, its process); where this machine cannot run one, skip, or fail in CI."""
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


def trust_device(described, monkeypatch):
    """Use the HOME in the device's description, as its user does, and no agent; return the URL."""
    monkeypatch.setenv("HOME", described["home"])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return described["url"]


@pytest.fixture(scope="session")
def pi_device(tmp_path_factory):
    """The description of the 64-bit device, which is started once a session."""
    with emulated_pi(tmp_path_factory.mktemp("pi") / "log") as (described, _):
        yield described


@pytest.fixture
def pi(pi_device, monkeypatch):
    """The URL of the 64-bit device, whose host key is trusted."""
    return trust_device(pi_device, monkeypatch)
