"""Every fault of the emulated phone, met at the command line, with the adb on PATH and the one in the package adbutils."""

import os
import random
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.adb_server import use_adb_server
from support.ssh_server import make_key

from edgecompress.cli import main
from edgecompress.devices import bench as bench_module
from edgecompress.devices import open_device
from edgecompress.devices import probe as probe_module
from edgecompress.devices.retry import probe_if_reachable
from edgecompress.devices.runners import attempt as attempt_module
from edgecompress.devices.runners import file_store as store_module
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.transports import adb as adb_module
from edgecompress.devices.transports import ssh as ssh_module
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.files import hash_file
from edgecompress.records import BenchmarkOptions, DeviceInfo

# A runner in POSIX sh. Its latency is the start of the request's nonce, so a reply of any other run would be noticed.
ANSWER = r"""
cd "${1%/*}" || exit 1
nonce=$(sed -n 's/.*"nonce": *"\([0-9a-f]*\)".*/\1/p' request.json | head -n 1)
sha=$(sha256sum <artifact_0.tflite); sha=${sha%% *}
ms=$((0x$(printf %.6s "$nonce")))
printf '{"schema": 1, "nonce": "%s", "runner": "sh", "threads": 1, "started_at": "2026-01-01T12:00:00+00:00", "peak_rss_bytes": 1,
"results": [{"sha256": "%s", "backend": "sh", "load_ms": 1, "first_ms": 1, "latency_ms": [%s]}]}' "$nonce" "$sha" "$ms" >reply.json.tmp
mv reply.json.tmp reply.json
"""
S390X_PROGRAM = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HH", 2, 22) + bytes(44)
ARTIFACT_BYTES = 20_000


SERVERS = ("adb_environment", "bundled_adb_environment")


# The adb of adbutils is newer and fails unlike the other in several ways; the slow tests ask it everything.
@pytest.fixture(params=[SERVERS[0], pytest.param(SERVERS[1], marks=pytest.mark.slow)], ids=["adb on PATH", "adb of adbutils"])
def adb_server(request, monkeypatch):
    yield from use_adb_server(request.getfixturevalue(request.param), monkeypatch)


@pytest.fixture
def impatient(monkeypatch):
    """Shorten the time limits of devices, so that a link that fell silent costs seconds."""
    for module in (adb_module, ssh_module):
        monkeypatch.setattr(module, "LINK_MARGIN_S", 1.0)
        monkeypatch.setattr(module, "transfer_timeout_s", lambda *_: 3.0)
    monkeypatch.setattr(adb_module, "COMMAND_TIMEOUT_S", 3.0)
    monkeypatch.setattr(adb_module, "RECONNECT_TIMEOUT_S", 3.0)
    monkeypatch.setattr(attempt_module, "COMMAND_TIMEOUT_S", 3.0)
    monkeypatch.setattr(store_module, "COMMAND_TIMEOUT_S", 3.0)
    monkeypatch.setattr(probe_module, "PROBE_TIMEOUT_S", 3.0)


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """A function that benches a file on a device with a runner; returns (exit status, what was printed to stderr).

    It stands in a folder that holds an earlier result, and that result must be there afterwards, and nothing else when it failed.
    """
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "results" / "phone" / "earlier.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"earlier": true}')
    artifact = tmp_path / "model.tflite"
    artifact.write_bytes(random.Random(0).randbytes(ARTIFACT_BYTES))

    def run(url, runner=ANSWER, *options):
        program = tmp_path / "program"
        program.write_bytes(runner if isinstance(runner, bytes) else f"#!/bin/sh\n{runner}\n".encode())
        with pytest.raises(SystemExit) as ended:
            main(["bench", str(artifact), "--device", url, "--runner", str(program), *options])
        assert earlier.read_text() == '{"earlier": true}'
        results = sorted((tmp_path / "results").rglob("*.json"))
        assert len(results) == (2 if ended.value.code == 0 else 1)
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("fault", "runner", "message"),
    [
        ("partial-file", ANSWER, r"arrived damaged.*run it again"),
        ("unauthorized", ANSWER, r"accept this computer's key"),
        ("offline", ANSWER, r"is offline; unplug and plug it"),
        ("drop-mid-push", ANSWER, r"cannot write .*(check the cable|offline|no longer attached)"),
        ("drop-mid-shell", ANSWER, r"connection was lost while running"),
        ("none", "kill -ILL $$", r"SIGILL.*use a runtime built for it.*the device is "),
        ("none", "kill -KILL $$", r"memory ran out.*close other programs"),
        ("none", "kill -SEGV $$", r"SIGSEGV.*export again or update"),
        ("none", "exit 126", r"noexec.*or the file is no program for it"),
        ("none", "exit 127", r"misses a library or is built for another ABI"),
        ("none", "exit 0", r"without a reply; is it a runner"),
        ("none", "printf '{}' >\"${1%/*}/reply.json\"", r"reply cannot be used"),
        ("none", S390X_PROGRAM, rf"built for s390x and the device is {os.uname().machine}; give one built for it"),
    ],
)
def test_each_fault_is_a_device_error_that_says_what_to_do(bench, adb_end, impatient, fault, runner, message):
    end = adb_end(fault)
    status, said = bench(end.url, runner)
    assert status == DeviceError.exit_code
    assert_matches(message, said)
    end.switch_fault("none")
    assert end.left_behind() == []
    assert end.running_processes() == []


FULL, LOCKED = ("no-space", r"No space left on device.*free some space"), ("read-only", r"Read-only file system.*check the disk")
REFUSED = [
    *((SERVERS[0], *row) for row in (FULL, LOCKED)),
    *(pytest.param(SERVERS[1], *row, marks=pytest.mark.slow) for row in (FULL, LOCKED)),
    (SERVERS[0], "noexec", "noexec"),  # a command's own status
]


@pytest.mark.parametrize(("adb_server", "fault", "message"), REFUSED, indirect=["adb_server"])
def test_what_the_kernel_of_the_device_refuses_is_a_device_error_that_says_what_to_do(bench, adb_end, fault, message):
    end = adb_end(fault, userland="arm64")
    status, said = bench(end.url)
    assert status == DeviceError.exit_code
    assert_matches(message, said)
    end.switch_fault("none")
    assert end.left_behind() == []
    assert end.running_processes() == []


def test_a_device_that_falls_silent_is_given_up_in_time(adb_end, impatient, tmp_path):
    end = adb_end("stall")
    (tmp_path / "model.tflite").write_bytes(b"model")
    (tmp_path / "program").write_text(f"#!/bin/sh\n{ANSWER}")
    start = time.monotonic()
    with open_device(end.url) as device, pytest.raises(DeviceError, match="did not finish within"):
        measure_latencies(device, [tmp_path / "model.tflite"], BenchmarkOptions(runner=str(tmp_path / "program"), timeout_s=1.0))
    assert time.monotonic() - start < 50  # the program sleeps for ever
    assert end.left_behind() == []


def test_an_ambiguous_or_missing_device_is_refused(bench, adb_end, adb_server):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: refused
        status, said = bench(f"adb://127.0.0.1:{held.getsockname()[1]}")
        assert status == DeviceError.exit_code
        assert_matches("cannot connect.*check the address", said)
    status, said = bench("adb://")
    assert status == DeviceError.exit_code
    assert_matches("no device attached; plug one in", said)
    first, second = adb_end(), adb_end()
    status, said = bench("adb://")
    assert status == DeviceError.exit_code
    assert_matches("2 devices attached.*name one", said)
    assert first.serial in said
    assert second.serial in said
    assert bench(first.url)[0] == 0


@pytest.mark.parametrize("after_bytes", [400, 9_000, 30_000])
def test_a_run_survives_a_link_that_breaks_once(bench, adb_end, impatient, after_bytes):
    """The link breaks while the device is probed, while the model is pushed, and afterwards."""
    end = adb_end()
    end.switch_fault(f"drop {after_bytes}")
    status, said = bench(end.url)
    assert end.fault.read_text() == "none"  # it did break
    assert status == 0, said
    assert end.left_behind() == []


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("drop 100ms", 0, "every sample: "),
        ("freeze 100ms", 6, r"adb shell did not finish within .*may have fallen silent; check the cable"),
        ("kill 100ms", 6, r"memory ran out"),
        ("die 100ms", 6, r"connection was lost while running sh: .*(offline|no longer attached)"),
    ],
)
def test_a_fault_while_the_runner_runs_is_survived_or_reported(bench, adb_end, impatient, monkeypatch, fault, status, message):
    monkeypatch.setattr(
        bench_module,
        "measure_latencies",
        lambda device, files, how, **rest: measure_latencies(device, files, replace(how, timeout_s=8.0), **rest),
    )
    end = adb_end()
    end.switch_fault(fault)
    found, said = bench(end.url, f"sleep 2\n{ANSWER}")  # long enough for the fault to come in between
    assert found == status, said
    assert_matches(message, said)
    assert end.fault.read_text() == "none"
    if "die" not in fault:
        assert end.running_processes() == []
        assert end.left_behind() == []


def test_a_runner_that_crashed_is_not_run_again(bench, adb_end, impatient, tmp_path):
    count = tmp_path / "count"
    status, _ = bench(adb_end().url, f"echo run >>'{count}'; kill -SEGV $$")
    assert status == DeviceError.exit_code
    assert count.read_text() == "run\n"


def test_a_finished_run_is_not_lost_with_the_device(adb_end, impatient):
    end = adb_end()
    with open_device(end.url) as device:
        end.process.kill()
        end.process.wait()
        assert probe_if_reachable(device) == DeviceInfo(url=end.url, serial=end.serial)


QUICK, ALL = 4, 200


@pytest.mark.parametrize(
    ("seed", "adb_server"),
    [pytest.param(seed, SERVERS[seed % 2], marks=pytest.mark.slow if seed >= QUICK else (), id=str(seed)) for seed in range(ALL)],
    indirect=["adb_server"],
)
def test_a_fault_at_a_random_moment_never_makes_a_wrong_success(seed, adb_end, impatient, tmp_path):
    """The link breaks or falls silent, the runner is killed or the device disappears, at a random byte of the link or time of the run."""
    chosen = random.Random(seed)
    end = adb_end()
    artifact, program = tmp_path / "model.tflite", tmp_path / "program"
    artifact.write_bytes(chosen.randbytes(chosen.choice([100, 20_000, 300_000])))
    program.write_text(f"#!/bin/sh\nsleep 0.{chosen.randrange(3)}\n{ANSWER}")
    fault = chosen.choices(["drop", "freeze", "kill", "die"], [5, 2, 3, 2])[0]
    while_running = fault == "kill" or chosen.random() < 0.3
    end.switch_fault(
        f"{fault} {chosen.randrange(250)}ms" if while_running else f"{fault} {chosen.randrange(artifact.stat().st_size + 12_000)}"
    )
    start = time.monotonic()
    with suppress(DeviceError), open_device(end.url) as device:
        (result,) = measure_latencies(device, [artifact], BenchmarkOptions(runner=str(program), timeout_s=3.0, repetitions=1))
        assert result.artifact_sha256 == hash_file(artifact)
        assert result.latency_ms == (int(result.session[:6], 16),)
    # measure: the fault, one reconnection, one more run, each step bounded by the waits above
    assert time.monotonic() - start < 200
    if fault != "die":
        end.switch_fault("none")
        assert end.running_processes() == []
        assert end.left_behind() == []


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda server, _: server.known_hosts.write_text(""), DeviceError, "unknown host key SHA256:.*add to ~/.ssh/known_hosts"),
        (
            lambda server, folder: server.known_hosts.write_text(server.known_line(make_key(folder / "other"))),
            DeviceError,
            "host key has CHANGED.*ssh-keygen -R",
        ),
        (lambda server, _: (server.home / ".ssh/id_ed25519").chmod(0o644), ConfigError, "id_ed25519: .*mode 0644.*chmod 600"),
        (
            lambda server, _: (server.home / ".ssh/id_ed25519").rename(server.home / ".ssh/elsewhere"),
            DeviceError,
            "refused our keys.*passwords are never asked for",
        ),
    ],
    ids=["unknown host key", "changed host key", "key with the wrong mode", "no key"],
)
def test_ssh_says_why_it_refuses_a_host_or_a_key(bench, ssh_server, tmp_path, break_it, error, message):
    key = ssh_server.home / ".ssh/id_ed25519"
    content = key.read_bytes()
    try:
        break_it(ssh_server, tmp_path)
        status, said = bench(ssh_server.url)
    finally:
        key.write_bytes(content)
        key.chmod(0o600)
    assert status == error.exit_code
    assert_matches(message, said)


def test_a_run_survives_an_ssh_link_that_breaks_once(bench, ssh_server, tmp_path):
    """The runner breaks the link by which it was started, the first time."""
    server = ssh_server.process.pid
    once = f"[ -e '{tmp_path}/done' ] || {{ touch '{tmp_path}/done'; kill -9 $(cat /proc/{server}/task/{server}/children); sleep 5; }}"
    status, said = bench(ssh_server.url, f"echo \"${{1%/*}}\" >>'{tmp_path}/folders'\n{once}\n{ANSWER}")
    assert status == 0, said
    folders = (tmp_path / "folders").read_text().split()
    assert len(folders) == 2
    assert not any(Path(folder).exists() for folder in folders)


def test_a_silent_ssh_link_is_given_up_and_the_work_folder_removed(ssh_server, impatient, tmp_path):
    """The server's end of the link is stopped and not closed, so it answers nothing."""
    server, folder = ssh_server.process.pid, tmp_path / "folder"
    (tmp_path / "model.tflite").write_bytes(b"model")
    stop = f"echo \"${{1%/*}}\" >'{folder}'; kill -STOP $(cat /proc/{server}/task/{server}/children); exec sleep 60"
    (tmp_path / "program").write_text(f"#!/bin/sh\n{stop}")
    start = time.monotonic()
    try:
        with (
            open_device(ssh_server.url) as device,
            pytest.raises(DeviceError, match="running sh took more than 2 s; check the connection"),
        ):
            measure_latencies(device, [tmp_path / "model.tflite"], BenchmarkOptions(runner=str(tmp_path / "program"), timeout_s=1.0))
        assert time.monotonic() - start < 50  # the program sleeps for 60
    finally:
        with suppress(ProcessLookupError):  # one that was just ending
            ssh_server.drop_connections()
    assert not Path(folder.read_text().strip()).exists()


def assert_matches(pattern, said):
    """A message is one sentence however wide the terminal is."""
    assert "Traceback" not in said
    with pytest.raises(DeviceError, match=pattern):
        raise DeviceError(" ".join(said.split()))
