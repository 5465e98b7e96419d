"""`pytest device_tests/suite` as a user with hardware runs it: golden files are written once, compared with, and never changed."""

import importlib.util
import json
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from support.paths import REPOSITORY

from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkResult, DeviceInfo

TINY = REPOSITORY / "tests/golden/tiny.tflite"
SPEC = importlib.util.spec_from_file_location("golden_file", REPOSITORY / "device_tests/suite/golden_file.py")
golden_file = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden_file)


def run_suite(*arguments):
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "device_tests/suite",
        "--repetitions",
        "5",
        *map(str, arguments),
    ]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"CI": ""})


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The golden file that the suite wrote on this machine, and its output."""
    path = tmp_path_factory.mktemp("golden") / "here.json"
    done = run_suite("--golden", path)
    assert done.returncode == 0, done.stdout
    return path, done.stdout


def open_edited(golden, folder, edit=lambda artifact: None, *, max_slowdown=None):
    """Return a copy of the golden file whose first artifact is changed by `edit`, opened for comparison, and the artifact before."""
    record = json.loads(golden[0].read_text())
    before = msgspec.convert(record["artifacts"][0], golden_file.GoldenArtifact)
    edit(record["artifacts"][0])
    path = folder / "edited.json"
    path.write_text(json.dumps(record))
    return golden_file.GoldenFile(path, max_slowdown), before


def test_the_golden_file_holds_outputs_and_latencies_of_each_artifact(golden):
    path, said = golden
    artifacts = msgspec.json.decode(path.read_bytes())["artifacts"]
    assert [a["artifact"] for a in artifacts] == ["tiny.tflite", "tiny-int8.tflite"]
    assert [len(a["outputs"][0]) for a in artifacts] == [12, 12]  # 4 samples of 3 scores
    assert [len(a["latency"]["latency_ms"]) for a in artifacts] == [5, 5]
    assert "tiny.tflite: median" in said


def test_the_same_device_passes_and_the_file_stays_as_it_is(golden, ssh_server):
    """Over ssh this machine is another device to the suite: its outputs are compared, its latencies are not."""
    path = golden[0]
    before = path.read_bytes()
    done = run_suite("--golden", path, "--device", ssh_server.url)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("not compared with") == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda a: a["outputs"][0].__setitem__(5, a["outputs"][0][5] + 1.0), AssertionError, "not the outputs of"),
        (lambda a: a["outputs"][0].pop(), AssertionError, "outputs of another size"),
        (lambda a: a.update(sha256="0" * 64), ConfigError, "does not know tiny.tflite"),
        (lambda a: a.update(extra=1), ConfigError, "not a Golden"),
    ],
)
def test_outputs_that_differ_from_the_golden_ones_are_refused(golden, tmp_path, edit, error, message):
    with pytest.raises(error, match=message):
        compare(*open_edited(golden, tmp_path, edit))


def compare(file, before):
    file.check_outputs(TINY, [np.array(before.outputs[0], np.float32)], tolerance=1e-5)


def test_outputs_as_they_were_pass(golden, tmp_path):
    compare(*open_edited(golden, tmp_path))


@pytest.mark.parametrize(("times", "passes"), [(1.0, True), (1.4, True), (1.6, False)])
def test_a_slower_latency_is_told_and_fails_beyond_what_was_allowed(golden, tmp_path, times, passes):
    file, before = open_edited(golden, tmp_path, max_slowdown=1.5)
    slower = msgspec.structs.replace(before.latency, latency_ms=tuple(times * x for x in before.latency.latency_ms))
    if passes:
        assert file.check_latency(slower).startswith(f"{times:.2f} times as long")
    else:
        with pytest.raises(AssertionError, match=r"1\.60 times as long .*, 1\.5 allowed"):
            file.check_latency(slower)


@pytest.mark.parametrize("change", [{"threads": 2}, {"backend": "another 1.0"}, {"device": DeviceInfo(url="adb://x", serial="x")}])
def test_latencies_under_other_conditions_are_not_compared(golden, tmp_path, change):
    file, before = open_edited(golden, tmp_path, max_slowdown=1e-9)
    assert file.check_latency(msgspec.structs.replace(before.latency, **change)).startswith("not compared with")


def test_latencies_of_an_emulated_device_are_not_compared(golden, tmp_path):
    file, before = open_edited(golden, tmp_path, lambda a: a["latency"]["device"].update(emulated=True), max_slowdown=1e-9)
    emulated = msgspec.structs.replace(before.latency.device, emulated=True)
    assert file.check_latency(msgspec.structs.replace(before.latency, device=emulated)).endswith("emulated")


def test_large_outputs_are_thinned_evenly():
    assert golden_file.thin_output(np.arange(9)).tolist() == list(range(9))
    thinned = golden_file.thin_output(np.arange(100_000).reshape(100, 1000))
    assert len(thinned) <= golden_file.MAX_VALUES
    assert len(set(np.diff(thinned))) == 1


def test_nothing_is_written_when_something_failed(tmp_path):
    done = run_suite("--golden", tmp_path / "new.json", "--artifact", tmp_path / "missing.tflite")
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_the_suite_runs_on_a_device_and_writes_every_latency(ssh_server, tmp_path):
    results = tmp_path / "results.json"
    done = run_suite("--device", ssh_server.url, "--results", results)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    latencies = msgspec.json.decode(results.read_bytes(), type=list[BenchmarkResult])
    assert [len(result.latency_ms) for result in latencies] == [5, 5]
