"""Runs on every kind of device, and text of a device that must do no harm."""

import os
import signal
import subprocess
import sys
from pathlib import PurePosixPath

import numpy as np
import pytest
from support.fifos import open_when_written

from edgecompress.devices import OPENERS, list_devices, open_device
from edgecompress.devices.device import CompletedCommand
from edgecompress.devices.probe import parse_probe
from edgecompress.devices.runners.execute import compute_outputs, measure_latencies
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.records import BenchmarkOptions

KINDS = ("local", "ssh", "adb")


@pytest.fixture(params=[KINDS[0], *(pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in KINDS[1:])])
def device(request, tmp_path):
    """A device of each kind without files of other runs."""
    if request.param == "adb":
        url = request.getfixturevalue("adb_end")().url
    else:
        url = "local://" if request.param == "local" else request.getfixturevalue("ssh_server").url
    with open_device(url) as opened:
        if request.param != "adb":
            (tmp_path / "base").mkdir()
            opened.base = PurePosixPath(tmp_path / "base")
        yield opened


def left_behind(device):
    """Return the names in the base folder but for the store of artifacts and runners, which stays on purpose."""
    names = device.run(["ls", "-A", str(device.base)], timeout_s=100).stdout.splitlines()
    return [name for name in names if name != f".edgecompress-{os.getuid()}"]


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    return path


def test_every_kind_is_tested():
    assert set(KINDS) == set(OPENERS)


def test_info_names_the_machine(device):
    info = device.info()
    assert info.abi == os.uname().machine
    assert (info.cores or 0) >= 1
    assert (info.free_bytes or 0) > 0
    assert info.url == device.url
    assert info.emulated == device.url.startswith("adb")


def test_outputs_are_the_hosts(device, tiny, tiny_samples):
    inputs, expected = tiny_samples
    (fp32,) = compute_outputs(device, tiny / "tiny.tflite", [inputs])
    assert np.abs(fp32 - expected).max() <= 1e-5 * np.ptp(expected)
    with open_device("local://") as host:
        (here,) = compute_outputs(host, tiny / "tiny-int8.tflite", [inputs])
    (there,) = compute_outputs(device, tiny / "tiny-int8.tflite", [inputs])
    assert np.array_equal(here, there)
    assert left_behind(device) == []


def test_artifacts_are_measured_interleaved_and_every_latency_is_kept(device, tiny):
    files = [tiny / "tiny.tflite", tiny / "tiny-int8.tflite"]
    results = measure_latencies(device, files, BenchmarkOptions(repetitions=7, warmup_s=0.0))
    assert [result.artifact for result in results] == [path.name for path in files]
    assert {len(result.latency_ms) for result in results} == {7}
    assert {len(result.warmup_ms) for result in results} == {1}
    assert len({result.session for result in results}) == 1
    assert all(result.load_ms > 0 and result.first_ms > 0 and min(result.latency_ms) > 0 for result in results)
    assert all(result.peak_rss_bytes > 1 << 20 and "litert" in result.backend for result in results)
    assert left_behind(device) == []


def test_a_run_that_is_late_is_ended_on_the_device(device, tiny, tmp_path):
    # fd 9 of the fifo closes only when the last process of the run is gone, so reading it to the end proves that nothing is left.
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    runner = script(tmp_path / "sleeper", f"exec 9>'{fifo}'; echo started >&9; sleep 60 & wait")
    with pytest.raises(DeviceError, match=r"did not finish within 3 s"):
        measure_latencies(device, [tiny / "tiny.tflite"], BenchmarkOptions(runner=str(runner), timeout_s=3.0))
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"started\n"
    assert left_behind(device) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("kill -SEGV $$", "SIGSEGV"),
        ("kill -ILL $$", "SIGILL.*" + os.uname().machine),
        ("kill -KILL $$", "memory ran out"),
        ("exit 126", "noexec"),
        ("exit 127", "another ABI"),
        ("echo no such model >&2; exit 3", "no such model"),
        ("exit 0", "without a reply"),
    ],
)
def test_the_reason_why_a_runner_died_is_reported(device, tiny, tmp_path, body, message):
    with pytest.raises(DeviceError, match=message):
        measure_latencies(device, [tiny / "tiny.tflite"], BenchmarkOptions(runner=str(script(tmp_path / "runner", body))))
    assert left_behind(device) == []


def test_awkward_names_stay_arguments(device, tmp_path):
    name = "a b;touch $(id)`id`'\"\\&|<>*\u00e4"
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 40)
    target, back = device.base / name, tmp_path / "back"
    device.push(source, target)
    assert left_behind(device) == [name]
    device.pull(target, back, max_bytes=1 << 20)
    assert back.read_bytes() == source.read_bytes()
    done = device.run(["printf", "%s|", name, "$HOME", "", "a\nb"], timeout_s=100)
    assert done.stdout == f"{name}|$HOME||a\nb|"
    with pytest.raises(DeviceError, match="more than the 100 allowed"):
        device.pull(target, back, max_bytes=100)
    with pytest.raises(DeviceError, match=r"not there|cannot read"):
        device.pull(device.base / "nothing", back, max_bytes=100)


def test_statuses_and_both_outputs_come_back(device):
    done = device.run(["sh", "-c", "echo out; echo error >&2; exit 7"], timeout_s=100)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "error\n")
    assert device.run(["no-such-program-here"], timeout_s=100).returncode == 127 if device.url != "local://" else True


def test_terminal_escapes_are_taken_out(device):
    done = device.run(["printf", r"\033[31mred\007\n"], timeout_s=100)
    assert done.stdout == "?[31mred?\n"


def test_endless_output_is_cut_off(device):
    with pytest.raises(DeviceError, match="more than 4 MiB"):
        device.run(["cat", "/dev/zero"], timeout_s=300)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("serial:///dev/ttyUSB0", "local://, ssh://, adb://"),
        ("pi@raspberrypi", "local://, ssh://, adb://"),
        ("", "unknown kind"),
        ("local://somewhere", "takes nothing"),
        ("ssh://", "write ssh://user@host:port"),
        ("ssh://pi:secret@host", "password"),
        ("ssh://pi:secret@host:99999", "password"),
        ("ssh://host:99999", "write ssh://user@host:port"),
        ("ssh://host/path", "write ssh://user@host:port"),
        ("ssh://-oProxyCommand=touch", "write ssh://user@host:port"),
        ("ssh://host\nname", "control characters"),
        ("adb://a\x1b[2Jb", "control characters"),
    ],
)
def test_a_wrong_url_is_refused(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        open_device(url)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_list_has_this_machine_and_says_what_is_wrong_with_the_others(adb_end):
    good, locked = adb_end(), adb_end("unauthorized")
    listed = {info.url: info for info in list_devices()}
    assert listed["local://"].problem == ""
    assert listed[good.url].problem == ""
    assert listed[good.url].abi == os.uname().machine
    assert listed[locked.url].state in {"unauthorized", "authorizing"}
    assert "accept this computer's key" in listed[locked.url].problem


def test_list_without_adb_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("ADB", "/nowhere/adb")
    here, adb = list_devices()
    assert here.url == "local://"
    assert "set ADB" in adb.problem


def test_hostile_facts_of_a_device_are_shortened_and_sanitized():
    said = "\n".join(
        ["abi=" + "x" * 9999, "product=\x1b]0;title\x07<script>", "cores=-1", "zone=99999999999", "free=a b c 1e9", "=", "noise"]
    )
    info = parse_probe(CompletedCommand((), 0, said, ""), url="adb://x", serial="x")
    assert len(info.abi) == 40
    assert info.model == "?]0;title?<script>"
    assert (info.cores, info.temperature_c, info.free_bytes) == (None, None, None)


def test_sanitize_keeps_text_and_replaces_control_characters():
    assert sanitize("ä ✓\n\t\x1b\u202e\x00") == "ä ✓\n\t???"


def test_the_local_python_is_this_one():
    with open_device("local://") as device:
        assert device.python == sys.executable


INTERRUPTED = """
import sys
from pathlib import Path, PurePosixPath
from edgecompress.devices import open_device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.records import BenchmarkOptions
with open_device(sys.argv[1]) as device:
    device.base = PurePosixPath(sys.argv[2])
    measure_latencies(device, [Path(sys.argv[3])], BenchmarkOptions(runner=sys.argv[4]))
"""


def test_an_interrupted_run_leaves_nothing(device, tiny, tmp_path):
    """Ctrl-C ends the job on the device too, and removes its folder."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    runner = script(tmp_path / "sleeper", f"exec 9>'{fifo}'; echo started >&9; exec sleep 60")
    argv = [sys.executable, "-c", INTERRUPTED, device.url, str(device.base), tiny / "tiny.tflite", runner]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    with open_when_written(fifo, process) as file:
        assert file.readline() == b"started\n"
        process.send_signal(signal.SIGINT)
        assert file.read() == b""
    _, error = process.communicate(timeout=300)
    assert b"KeyboardInterrupt" in error
    assert left_behind(device) == []
