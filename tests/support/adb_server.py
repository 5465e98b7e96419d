"""A real adb server on its own port and HOME, and device ends for it (device_tests/emulated/adb_device.py), each a process of its own."""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.require import require
from support.ssh_server import free_port

DEVICE_END = Path(__file__).parents[2] / "device_tests" / "emulated" / "adb_device.py"


@dataclass(frozen=True)
class AdbEnd:
    serial: str
    storage: Path  # what /data/local/tmp is on this host
    process: subprocess.Popen

    @property
    def url(self):
        return f"adb://{self.serial}"


def adb(*arguments):
    return subprocess.run([require("adb", "adb"), *arguments], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="session")
def adb_environment(tmp_path_factory):
    """The settings of one adb server for the whole session, which is stopped at the end."""
    program = require("adb", "adb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("adb-home")))
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        settings = {name: value for name in ("HOME", "ANDROID_ADB_SERVER_PORT") if (value := os.environ[name])}
        subprocess.run([program, "start-server"], check=True, timeout=30, capture_output=True)
        try:
            yield settings
        finally:
            subprocess.run([program, "kill-server"], check=False, timeout=30, capture_output=True)


@pytest.fixture
def adb_server(adb_environment, monkeypatch):
    """The adb server, with nothing attached."""
    for name, value in adb_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ADB", raising=False)
    adb("disconnect")
    yield
    adb("disconnect")


@pytest.fixture
def adb_end(adb_server, tmp_path):
    """A function that starts a device end with a fault and, unless told otherwise, attaches it."""
    with ExitStack() as stack:

        def start(fault="none", *, attach=True):
            root = tmp_path / f"android-{fault}"
            root.mkdir(exist_ok=True)
            argv = [sys.executable, DEVICE_END, "--root", root, "--fault", fault]
            process = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            serial = f"127.0.0.1:{process.stdout.readline().strip()}"
            if attach:
                adb("connect", serial)
            return AdbEnd(serial, root / "data/local/tmp", process)

        yield start
