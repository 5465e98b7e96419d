"""A real adb server with its own port and HOME, and emulated phones for it (device_tests/emulated/android), each in its own process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.processes import with_us
from support.require import require, unavailable
from support.ssh_server import free_port

DEVICE_END = Path(__file__).parents[2] / "device_tests" / "emulated" / "android"
STOP_S = 200


@dataclass(frozen=True)
class AdbEnd:
    serial: str
    storage: Path  # where this host sees /data/local/tmp
    process: subprocess.Popen
    fault: Path  # the file whose line is the fault in force

    @property
    def url(self):
        return f"adb://{self.serial}"

    def left_behind(self):
        """Return the names in the device's storage but for the store of artifacts and runners, which stays on purpose."""
        return sorted(path.name for path in self.storage.iterdir() if not path.name.startswith(".edgecompress-"))

    def running_processes(self, *, wait_s=30.0):
        """Return the ids of processes of the device that still run, after dying ones had time to end."""
        mark = f"EDGECOMPRESS_END={self.fault.parent}".encode()
        until = time.monotonic() + wait_s
        while (found := [pid for pid in Path("/proc").glob("[0-9]*") if mark in _environment(pid)]) and time.monotonic() < until:
            time.sleep(0.02)
        return found

    def switch_fault(self, fault):
        """Put another fault in force; "none" ends it. See device_tests/emulated/android/faults.py."""
        beside = self.fault.with_suffix(".new")
        beside.write_text(fault)
        beside.replace(self.fault)


def _environment(process):
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile, or is another user's
        return []


def adb(*arguments):
    """Run the adb under test."""
    program = os.environ.get("ADB") or require("adb", "adb")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, check=False)


def bundled_adb():
    """Return the adb inside the package adbutils; its own `adb_path()` prefers one on PATH."""
    import adbutils

    return str(Path(adbutils.__file__).parent / "binaries" / "adb")


@contextmanager
def running_adb_server(program, home):
    """Run a server of an adb program on a port of its own; yield its environment."""
    settings = {"ADB": str(program), "HOME": str(home), "ANDROID_ADB_SERVER_PORT": str(free_port())}
    environment = {**os.environ, **settings}
    subprocess.run([program, "start-server"], check=True, timeout=300, capture_output=True, env=environment)
    try:
        yield settings
    finally:
        subprocess.run([program, "kill-server"], check=False, timeout=300, capture_output=True, env=environment)


@pytest.fixture(scope="session")
def adb_environment(tmp_path_factory):
    """The environment of a server of the adb on PATH, one for the whole session."""
    with running_adb_server(require("adb", "adb"), tmp_path_factory.mktemp("adb-home")) as settings:
        yield settings


@pytest.fixture(scope="session")
def bundled_adb_environment(tmp_path_factory):
    """The environment of a server of adbutils' adb, which is newer than Debian's and differs from it in several failures."""
    with running_adb_server(bundled_adb(), tmp_path_factory.mktemp("bundled-adb-home")) as settings:
        yield settings


def use_adb_server(settings, monkeypatch):
    """Let the test use a server that has no device attached before and after."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    adb("disconnect")
    yield
    adb("disconnect")


@pytest.fixture
def adb_server(adb_environment, monkeypatch):
    yield from use_adb_server(adb_environment, monkeypatch)


@pytest.fixture
def bundled_adb_server(bundled_adb_environment, monkeypatch):
    yield from use_adb_server(bundled_adb_environment, monkeypatch)


@pytest.fixture
def adb_end(adb_server, tmp_path):
    """A function that starts an emulated phone with a fault and, unless told otherwise, attaches it.

    Commands on it are this machine's programs, which start a hundred times faster; `userland="arm64"` gives it arm64 programs.
    """
    with ExitStack() as stack:

        def start(fault="none", *, attach=True, userland="host", options=()):
            root = Path(tempfile.mkdtemp(prefix="android-", dir=tmp_path))
            argv = [*with_us(), sys.executable, DEVICE_END, "--root", root, "--fault", fault, "--userland", userland, *options]
            process = stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            if not (line := process.stdout.readline()):
                said = process.stderr.read().strip()
                (unavailable if process.wait(STOP_S) == 1 and "Traceback" not in said else pytest.fail)(said)
            described = json.loads(line)
            if attach:
                attach_end(described["serial"], stack, answers=fault != "offline")
            return AdbEnd(described["serial"], Path(described["storage"]), process, root / "fault")

        yield start


def attach_end(serial, stack, *, answers):
    if answers:
        adb("connect", serial)
        return
    # `adb connect` waits for the answer that does not come, while the device already stands in the list.
    waiting = subprocess.Popen([os.environ["ADB"], "connect", serial], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(waiting.wait, 10)
    stack.callback(waiting.kill)
    while serial not in adb("devices").stdout:
        assert waiting.poll() is None
