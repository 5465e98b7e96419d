"""The emulated Raspberry Pi runs artifacts as ARM code over a real sshd and leaves nothing behind."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from support.emulated_pi import PROGRAM, STOP_S, emulated_pi, trust_device
from support.paths import REPOSITORY, TESTS

from edgecompress.devices import open_device
from edgecompress.devices.bench import bench
from edgecompress.devices.manifests import read_manifest
from edgecompress.devices.runners.execute import compute_outputs
from edgecompress.errors import DeviceError

GOLDEN = TESTS / "golden"
PREBUILT = REPOSITORY / "examples" / "prebuilt"
FP32, INT8 = (PREBUILT / f"resnet20_fashion_mnist-{scheme}.tflite" for scheme in ("fp32", "int8-static"))
# Differences over the output range: kernels of different CPUs add in different orders; an int8 output may be one step away.
TOLERANCES = {FP32: 1e-5, INT8: 1 / 255}


def max_difference_from_host(url, artifact, shapes=None):
    """Return the largest difference of the outputs there from those here over the range of the outputs."""
    generator = np.random.default_rng(0)
    shapes = shapes or [tensor.shape for tensor in read_manifest(artifact).inputs]
    inputs = [generator.uniform(-1, 1, (2, *shape[1:])).astype(np.float32) for shape in shapes]
    with open_device("local://") as host, open_device(url) as device:
        here, there = compute_outputs(host, artifact, inputs)[0], compute_outputs(device, artifact, inputs)[0]
    return np.abs(here - there).max() / np.ptp(here)


def test_the_device_tells_that_it_is_an_emulated_pi(pi):
    with open_device(pi) as device:
        info = device.info()
        assert device.run(["uname", "-n"], timeout_s=20).stdout.strip() == "raspberrypi"
    assert info.emulated
    assert (info.abi, info.governor, info.temperature_c) == ("aarch64", "ondemand", 42.0)
    assert (info.model, info.soc) == ("Raspberry Pi 4 Model B Rev 1.4", "BCM2835")
    assert "asimd" in info.cpu_features
    assert "atomics" not in info.cpu_features  # a Cortex-A72 has no LSE


@pytest.mark.parametrize("artifact", TOLERANCES, ids=lambda path: path.stem)
def test_outputs_there_are_the_hosts(pi, artifact):
    assert max_difference_from_host(pi, artifact) <= TOLERANCES[artifact]


def test_what_is_measured_there_is_marked_emulated(pi):
    results = bench([FP32, INT8], device=pi, repetitions=5, warmup_s=0)
    assert [Path(result.artifact).name for result in results] == [FP32.name, INT8.name]
    for result in results:
        assert result.device.emulated
        assert len(result.latency_ms) == 5
        assert min(result.latency_ms) > 0
        assert "ai-edge-litert" in result.backend


def test_an_instruction_that_a_pi_4_lacks_ends_the_program(pi):
    """The instruction `ldadd` of LSE, which libraries for newer cores use, must end a program here as it does on the board."""
    ldadd = "import ctypes,mmap; m=mmap.mmap(-1,4096,prot=7); m.write(bytes.fromhex('200020b8c0035fd6')); b=(ctypes.c_int*4)()\n"
    call = "ctypes.CFUNCTYPE(None,ctypes.c_int,ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(m)))(1,ctypes.addressof(b))"
    with open_device(pi) as device:
        done = device.run(["python3", "-c", ldadd + call], timeout_s=30)
        assert device.run(["env", "QEMU_CPU=max", "python3", "-c", ldadd + call], timeout_s=30).returncode == 0
    assert done.returncode in {-signal.SIGILL, 128 + signal.SIGILL}


def test_a_full_disk_there_is_named_and_two_devices_do_not_share_one(pi, tmp_path, monkeypatch):
    large = tmp_path / "large"
    large.write_bytes(os.urandom(12 << 20))
    with open_device(pi) as roomy:
        roomy.push(large, PurePosixPath("/home/pi/large"))
    with emulated_pi(tmp_path / "log", "--storage-mib", "8") as (described, _):
        url = trust_device(described, monkeypatch)
        with open_device(url) as small:
            assert small.run(["ls", "/home/pi"], timeout_s=20).stdout == ""
            with pytest.raises(DeviceError, match=r"cannot write /tmp/large: .*No space left on device; free some space"):
                small.push(large, PurePosixPath("/tmp/large"))


def test_a_runner_that_needs_too_much_memory_is_killed_and_reported(tmp_path, monkeypatch):
    with emulated_pi(tmp_path / "log", "--memory-mib", "90") as (described, _):
        with pytest.raises(DeviceError, match=r"killed \(SIGKILL\).*memory ran out.*exit status 137"):
            bench([FP32], device=trust_device(described, monkeypatch), repetitions=1, warmup_s=0)
        with open_device(described["url"]) as device:
            assert device.run(["sh", "-c", "ls -d /tmp/edgecompress-*"], timeout_s=20).stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_when_it_ends_its_processes_and_mounts_end(tmp_path, monkeypatch, number):
    with emulated_pi(tmp_path / "log") as (described, process):
        folder = Path(described["home"]).parent
        (outermost,) = children(process.pid)
        (innermost,) = children(outermost)
        sshd = os.pidfd_open(innermost)
        assert folder.name in Path(f"/proc/{innermost}/mountinfo").read_text()
        url = trust_device(described, monkeypatch)
        with open_device(url) as device:
            device.run(["sh", "-c", "nohup sleep 1000 >/dev/null 2>&1 &"], timeout_s=20)
        assert folder.name not in Path("/proc/self/mountinfo").read_text()
        process.send_signal(number)
        process.wait(STOP_S)
        # The kernel reports process 1 of a namespace as ended after every other process in there.
        assert wait_for(sshd)
    assert folder.name not in Path("/proc/self/mountinfo").read_text()
    assert folder.exists() == (number == signal.SIGKILL)  # nobody is left to remove the keys after SIGKILL
    with pytest.raises(DeviceError, match="cannot be reached"):
        open_device(url)


def test_start_returns_and_stop_ends_it(pi_device, tmp_path, monkeypatch):
    """The cache is the test's own, so that a device which the user started is left alone; it links to the existing root file system."""
    for built in PROGRAM.parents[2].joinpath(".emulated").glob("arm64-*"):
        (tmp_path / built.name).symlink_to(built)
    try:
        described = pi_command("start", tmp_path)
        assert pi_command("start", tmp_path) == described
        with open_device(trust_device(described, monkeypatch)) as device:
            assert device.run(["true"], timeout_s=20).returncode == 0
    finally:
        pi_command("stop", tmp_path)
    assert not Path(described["home"]).exists()
    assert pi_command("stop", tmp_path) is None


def test_what_is_missing_is_named_with_its_package(tmp_path):
    argv = [sys.executable, PROGRAM, "run", "--cache", tmp_path]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "mmdebstrap is missing; install the Debian package mmdebstrap" in done.stderr
    assert not done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_that_fails_leaves_no_half_built_root(pi_device, tmp_path):
    argv = [sys.executable, PROGRAM, "build", "--cache", tmp_path, "--mirror", "http://127.0.0.1:9/debian"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "check the network" in done.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.slow
def test_a_32_bit_board_computes_the_hosts_outputs(tmp_path, monkeypatch):
    """The last runtime published for it rounds int8 differently, so only a network of few layers stays within one quantization step."""
    with emulated_pi(tmp_path / "log", "--board", "armhf") as (described, _):
        url = trust_device(described, monkeypatch)
        with open_device(url) as device:
            assert device.info().abi == "armv7l"
        assert max_difference_from_host(url, FP32) <= TOLERANCES[FP32]
        assert max_difference_from_host(url, GOLDEN / "tiny-int8.tflite", shapes=[(1, 1, 8, 8)]) <= TOLERANCES[INT8]


@pytest.mark.slow
def test_what_earlier_ingredients_made_is_removed_unless_a_device_runs_on_it(pi_device, tmp_path):
    for name in ("arm64-unused", "arm64-held", "armhf-other"):
        (tmp_path / name).mkdir()
    with (tmp_path / "arm64-held.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        argv = [sys.executable, PROGRAM, "build", "--cache", tmp_path]
        built = Path(subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=200, check=True).stdout.strip())
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {built, tmp_path / "arm64-held", tmp_path / "armhf-other"}


def pi_command(command, cache):
    done = subprocess.run([sys.executable, PROGRAM, command, "--cache", cache], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout) if done.stdout else None


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(pidfd):
    """Tell whether the process ended within the time to stop."""
    try:
        return bool(select.select([pidfd], [], [], STOP_S)[0])
    finally:
        os.close(pidfd)
