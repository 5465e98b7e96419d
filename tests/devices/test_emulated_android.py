"""The emulated phone with an arm64 userland forbids what a phone forbids and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.adb_server import DEVICE_END, adb
from support.paths import TESTS
from support.processes import with_us
from support.require import require

from edgecompress.devices import open_device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.runners.file_store import send_files
from edgecompress.errors import DeviceError
from edgecompress.records import BenchmarkOptions

TINY = TESTS / "golden/tiny.tflite"
MIB = 1 << 20


@pytest.fixture
def phone(adb_end):
    return adb_end(userland="arm64", options=("--storage-mib", "32"))


def test_the_phone_tells_its_facts(phone):
    with open_device(phone.url) as device:
        info = device.info()
        who = device.run(["id"], timeout_s=20).stdout
    assert (info.model, info.os, info.abi, info.emulated) == ("Emulated end", "Android 13", "arm64-v8a", True)
    assert (info.governor, info.temperature_c) == ("schedutil", 42.0)
    assert "asimddp" in info.cpu_features
    assert info.free_bytes == 32 * MIB
    assert who.startswith("uid=2000(shell) gid=2000(shell)")


FORBIDDEN = {
    "touch /system/x": (1, "Read-only file system"),
    "touch /data/x": (1, "Permission denied"),
    "cp /system/bin/toybox /sdcard/x && /sdcard/x": (126, "can't execute: Permission denied"),
    "kill -9 1": (1, "Operation not permitted"),
}


def test_what_a_phone_forbids_is_forbidden(phone):
    with open_device(phone.url) as device:
        for command, (status, said) in FORBIDDEN.items():
            done = device.run(["sh", "-c", command], timeout_s=20)
            assert done.returncode == status
            assert said in done.stderr


def test_a_full_disk_fails_pushes_and_commands(phone, tmp_path):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(os.urandom(40 * MIB))
    small.write_bytes(b"small")
    with open_device(phone.url) as device:
        with pytest.raises(DeviceError, match=r"No space left on device.*free some space there"):
            device.push(large, device.base / "large")
        assert (phone.storage / "large").stat().st_size < large.stat().st_size
        done = device.run(["sh", "-c", f"echo words >{device.base}/words"], timeout_s=20)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        device.run(["rm", str(device.base / "large")], timeout_s=20)
        device.push(small, device.base / "small")
    assert (phone.storage / "small").read_bytes() == b"small"


def test_the_status_of_a_command_is_its_own_however_soon_it_ends(phone):
    """The `timeout` of toybox exits with 127 when its command ends very soon, which must not become the status of the command."""
    with open_device(phone.url) as device:
        assert {device.run(["true"], timeout_s=20).returncode for _ in range(20)} == {0}


def test_a_command_that_is_late_is_ended_with_what_it_started(phone):
    with open_device(phone.url) as device, pytest.raises(DeviceError, match="did not finish within 1 s"):
        device.run(["sh", "-c", "sleep 1000; true"], timeout_s=1)
    assert phone.running_processes() == []


def test_a_program_that_brings_no_c_library_does_not_start(phone, tmp_path):
    """Android has no glibc, so a runner that only works on other arm64 Linux systems must not seem to work here."""
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text("int main(void) { return 0; }")
    subprocess.run([require("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), source, "-o", program], check=True, timeout=300)
    why = r"the runner failed.*Could not open '/lib/ld-linux-aarch64.so.1'"
    with open_device(phone.url) as device, pytest.raises(DeviceError, match=why):
        measure_latencies(device, [TINY], BenchmarkOptions(runner=str(program)))
    assert phone.left_behind() == []


def test_what_was_sent_is_not_sent_again(phone):
    """The scripts of the store also work in Android's shell, which defines aliases that other shells do not."""
    with open_device(phone.url) as device:
        first = send_files(device, device.base / "first", {"model": TINY}, keep={"model"})
        again = send_files(device, device.base / "again", {"model": TINY}, keep={"model"})
    assert (first.pushed_bytes, again.pushed_bytes) == (TINY.stat().st_size, 0)
    assert (phone.storage / "again/model").read_bytes() == TINY.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_when_it_ends_its_processes_and_mounts_end(phone, number):
    adb("-s", phone.serial, "push", TINY, "/data/local/tmp/pushed")  # files are touched as another user
    adb("-s", phone.serial, "shell", "setsid sh -c 'exec sleep 1000 >/dev/null 2>&1' &")
    assert phone.running_processes(wait_s=0)
    phone.process.send_signal(number)
    phone.process.wait(300)
    assert phone.running_processes() == []
    assert str(phone.fault.parent) not in Path("/proc/self/mountinfo").read_text()


def test_the_phone_ends_with_pytest_even_where_that_is_killed(tmp_path):
    argv = [*with_us(), sys.executable, DEVICE_END, "--root", tmp_path / "phone", "--userland", "host"]
    starter = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *argv]
    with subprocess.Popen(starter, stdout=subprocess.PIPE, text=True) as process:
        assert '"serial"' in process.stdout.readline()
        process.kill()
        process.communicate(timeout=300)  # until nobody holds the other end


def test_without_root_or_qemu_the_hosts_programs_run_and_it_says_so(tmp_path):
    argv = [sys.executable, DEVICE_END, "--root", tmp_path / "phone"]
    environment = {"PATH": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert '"userland": "host"' in process.stdout.readline()
        process.terminate()
        said = process.stderr.read()
    assert "this machine's own programs run on the device" in said
    assert "mmdebstrap is missing; install the Debian package mmdebstrap" in said
