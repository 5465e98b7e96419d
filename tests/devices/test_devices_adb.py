"""Failures that adb hides or reports badly, with a real adb server and the emulated phone."""

import shutil
import subprocess
from pathlib import PurePosixPath

import pytest
from support.adb_server import adb

from edgecompress.devices import open_device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.runners.file_store import send_files
from edgecompress.devices.transports import adb as adb_module
from edgecompress.errors import DeviceError
from edgecompress.records import BenchmarkOptions


def test_an_unauthorized_phone_says_what_to_do_on_it(adb_end):
    with pytest.raises(DeviceError, match=r"unauthorized.*accept this computer's key|authorizing"):
        open_device(adb_end("unauthorized").url)


def test_a_phone_that_went_away_says_so(adb_end):
    end = adb_end()
    with open_device(end.url) as device:
        end.process.kill()
        end.process.wait()
        with pytest.raises(DeviceError, match=r"connection was lost|offline|no longer attached"):
            device.run(["true"], timeout_s=5)


def test_an_unknown_serial_lists_what_is_there(adb_end):
    end = adb_end()
    with pytest.raises(DeviceError, match="no such device; attached: ") as caught:
        open_device("adb://R5CN30")
    assert end.serial in str(caught.value)


def test_no_serial_takes_the_only_device_and_refuses_to_guess(adb_end):
    with pytest.raises(DeviceError, match="no device attached"):
        open_device("adb://")
    first = adb_end()
    with open_device("adb://") as device:
        assert device.serial == first.serial
    second = adb_end("stall")
    with pytest.raises(DeviceError, match="2 devices attached") as caught:
        open_device("adb://")
    assert second.serial in str(caught.value)


@pytest.mark.parametrize("serial", ["R5%41", "a b", "50%", "%2541"])
def test_the_address_of_the_list_opens_the_device_of_the_list(adb_server, monkeypatch, serial):
    monkeypatch.setattr(adb_module, "_read_states", lambda adb: {serial: "device", "R5A": "device"})
    url = next(info.url for info in adb_module.list_attached() if info.serial == serial)
    with open_device(url) as device:
        assert (device.serial, device.url) == (serial, url)


def test_an_address_is_connected_to(adb_end):
    end = adb_end(attach=False)
    with open_device(end.url) as device:
        assert device.run(["echo", "there"], timeout_s=10).stdout == "there\n"


def test_a_refused_port_is_an_error_though_adb_exits_0(adb_server):
    with pytest.raises(DeviceError, match="cannot connect"):
        open_device("adb://127.0.0.1:1")


@pytest.mark.parametrize("serial", ["x; touch INJECTED", "$(touch INJECTED)", "-e", "--help", "`id`", "a b", "..", "'"])
def test_a_serial_is_never_taken_for_an_option_or_a_command(adb_server, serial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceError, match="no such device"):
        open_device(f"adb://{serial}")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_there_is_no_success(adb_end, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    with open_device(adb_end("no-space").url) as device, pytest.raises(DeviceError, match="No space left on device"):
        device.push(source, device.base / "target")


def test_a_link_that_drops_in_a_push_is_no_success(adb_end, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1_000_000)
    with open_device(adb_end("drop-mid-push").url) as device, pytest.raises(DeviceError, match=r"cannot write .*target"):
        device.push(source, device.base / "target")


def test_a_link_that_drops_in_a_run_is_no_success(adb_end, tiny):
    with open_device(adb_end("drop-mid-shell").url) as device, pytest.raises(DeviceError, match="connection was lost"):
        measure_latencies(device, [tiny / "tiny.tflite"])


def test_a_device_that_answers_nothing_is_given_up(adb_end, tiny, monkeypatch):
    monkeypatch.setattr(adb_module, "LINK_MARGIN_S", 0.5)
    end = adb_end("stall")
    with open_device(end.url) as device, pytest.raises(DeviceError, match=r"did not finish within 1 s"):
        measure_latencies(device, [tiny / "tiny.tflite"], BenchmarkOptions(timeout_s=0.5))
    assert end.left_behind() == []


def test_sync_lists_and_reports_what_is_not_there(adb_end, tmp_path):
    end = adb_end()
    (end.storage / "file").write_bytes(b"12345")
    listed = adb("-s", end.serial, "ls", "/data/local/tmp").stdout
    assert " 00000005 " in listed
    missing = adb("-s", end.serial, "pull", "/data/local/tmp/nothing", str(tmp_path / "x"))
    assert missing.returncode != 0


@pytest.mark.parametrize(("found", "expected"), [("setting", "setting"), ("path", "path"), ("bundled", "adbutils")])
def test_adb_is_found_by_setting_then_path_then_package(monkeypatch, tmp_path, found, expected):
    for name in ("setting", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adb").write_text("#!/bin/sh\n")
        (tmp_path / name / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path") if found != "bundled" else str(tmp_path / "empty"))
    monkeypatch.delenv("ADB", raising=False)
    if found == "setting":
        monkeypatch.setenv("ADB", str(tmp_path / "setting" / "adb"))
    assert f"/{expected}/" in adb_module.find_adb()


def test_a_setting_that_names_no_program_is_said(monkeypatch):
    monkeypatch.setenv("ADB", "/nowhere/adb")
    with pytest.raises(DeviceError, match="ADB=/nowhere/adb: no such program"):
        adb_module.find_adb()


def test_the_bundled_adb_works_too(adb_end, monkeypatch, tmp_path):
    """adb 36 of the package adbutils, on a server of its own, differs from Debian's adb 29 in several failures."""
    import adbutils
    from support.ssh_server import free_port

    end = adb_end(attach=False)
    monkeypatch.setenv("ADB", str(shutil.copy(adbutils.adb_path(), tmp_path / "adb")))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    try:
        with open_device(end.url) as device:
            source = tmp_path / "source"
            source.write_bytes(bytes(300_000))
            device.push(source, PurePosixPath("/data/local/tmp/target"))
            assert device.run(["wc", "-c", "/data/local/tmp/target"], timeout_s=10).stdout.split()[0] == "300000"
        with pytest.raises(DeviceError, match="cannot connect"):
            open_device("adb://127.0.0.1:1")
    finally:
        subprocess.run([tmp_path / "adb", "kill-server"], check=False, capture_output=True, timeout=300)


def test_android_6_ends_lines_with_cr_lf_and_tells_no_status(adb_end):
    end = adb_end(options=("--old",))
    bare = [adb_module.find_adb(), "-s", end.serial, "shell", "echo hello; exit 7"]
    assert subprocess.run(bare, capture_output=True, check=True, timeout=60).stdout == b"hello\r\n"
    with open_device(end.url) as device:
        done = device.run(["sh", "-c", "echo one; echo two; exit 7"], timeout_s=10)
        assert (done.returncode, done.stdout) == (7, "one\ntwo\n")
        assert device.run(["sh", "-c", "echo why >&2; exit 1"], timeout_s=10).stdout == "why\n"  # the outputs are one there
        with pytest.raises(DeviceError, match=r"did not finish within 0.2 s"):
            device.run(["sleep", "60"], timeout_s=0.2)
        info = device.info()
    assert info.abi
    assert not info.os.endswith("?")


@pytest.mark.slow
def test_android_6_takes_commands_longer_than_a_message(adb_end, tmp_path):
    end = adb_end(options=("--old",))
    (tmp_path / "sent").write_bytes(b"a line\r\n")
    with open_device(end.url) as device:
        work = device.base / "work"
        assert send_files(device, work, {"file": tmp_path / "sent"}, keep=()).pushed_bytes == 8
        device.pull(work / "file", tmp_path / "back", max_bytes=100)
        assert (tmp_path / "back").read_bytes() == b"a line\r\n"
        words = [f"{work}/a 'word' of {i}" for i in range(200)]
        done = device.run(["sh", "-c", 'for word; do echo "$word"; done; rm -r "$0"; exit 7', str(work), *words], timeout_s=20)
        assert (done.returncode, len(done.stdout.splitlines())) == (7, 200)
    assert end.left_behind() == []
