"""From a recipe to outputs that another processor computed: export, bench and evaluate, on a phone and a Pi of this machine's own.

How long that takes from nothing is a row of benchmarks/harness.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.emulated_pi import emulated_pi, trust_device
from support.native_runner import build_native_runner
from support.paths import REPOSITORY
from support.runs import OPTIONS, QUICK

from edgecompress.records import BenchmarkResult, read_record
from edgecompress.records.evaluation import Evaluation

SCHEMES = ("fp32", "int8-static")


@pytest.fixture(
    params=[
        pytest.param("android", marks=pytest.mark.xdist_group("adb")),
        pytest.param("raspberry-pi", marks=pytest.mark.xdist_group("raspberry-pi")),
    ]
)
def target(request, tmp_path, monkeypatch):
    """(name of the target, URL of a device of that kind, options for what it cannot do by itself)."""
    if request.param == "android":
        end = request.getfixturevalue("adb_end")(userland="arm64")
        yield request.param, end.url, ("--runner", build_native_runner())
    else:
        with emulated_pi(tmp_path / "log") as (described, _):
            yield request.param, trust_device(described, monkeypatch), ()


@pytest.mark.timeout(900)  # it takes half a minute where nothing else runs
def test_what_is_exported_for_a_target_computes_there_what_it_computes_here(target, run, edgecompress, digits_recipe, tmp_path):
    """The run goes on from one that other tests look at, where all was done once for the first target."""
    name, url, options = target
    answer = edgecompress("export", digits_recipe, "--target", name, "--run", run, *OPTIONS, *QUICK)
    assert answer.code == 0, answer.err
    artifacts = [run / f"artifacts/digits-{scheme}.tflite" for scheme in SCHEMES]

    answer = edgecompress("bench", *artifacts, "--device", url, *options, "--repetitions", "3")
    assert answer.code == 0, answer.err
    results = [read_record(path, BenchmarkResult) for path in tmp_path.glob("results/*/*.json")]
    assert {Path(result.artifact).name for result in results} == {path.name for path in artifacts}
    for result in results:
        assert result.device.abi in {"arm64-v8a", "aarch64"}
        assert result.device.emulated
        assert len(result.latency_ms) == 3

    # That outputs there are the outputs here, fp32 within 1e-5 of the range and int8 within one quantization step, decides the exit status.
    answer = edgecompress("evaluate", *artifacts, "--device", url, *options, "--samples", "20")
    assert answer.code == 0, answer.err
    records = [read_record(path, Evaluation) for path in tmp_path.glob("results/*/accuracy/*.json")]
    assert sorted(record.scheme for record in records) == sorted(SCHEMES)
    assert [(record.problem, record.samples) for record in records] == [("", 20)] * len(SCHEMES)


@pytest.mark.slow
def test_the_suite_for_people_with_hardware_passes_on_a_phone(adb_end):
    suite(adb_end(userland="arm64").url, "--runner", build_native_runner())


@pytest.mark.slow
def test_the_suite_for_people_with_hardware_passes_on_a_pi(pi):
    suite(pi)


def suite(url, *options):
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "device_tests/suite", "--device", url, "--repetitions", "3"]
    done = subprocess.run(
        [*argv, *map(str, options)], cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False, env=os.environ | {"CI": ""}
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("not compared") == 0
