"""Networks whose inference takes a microsecond or a minute: what a reply holds, and how long a run may take."""

import importlib.util
import sys

import numpy as np
import pytest

from edgecompress import toolchains
from edgecompress.artifacts import execution
from edgecompress.cli.views.artifacts import tabulate_results
from edgecompress.devices import open_device
from edgecompress.devices.runners import execute, third_party
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.devices.runners.protocol import FileRequest, RunnerRequest
from edgecompress.devices.statistics import find_noise, ratio
from edgecompress.records import BenchmarkOptions, TensorSpec, to_json

# Our own runner with a clock that goes on by a minute each time that it is read, so that every inference takes one.
SLOW_RUNNER = """#!{python}
import itertools, runpy, sys, time
minutes = itertools.count(0, 60)
time.perf_counter = lambda: float(next(minutes))
sys.path.insert(0, {folder!r})
runpy.run_path({runner!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def runner_module():
    folder = str(toolchains.runner().parent)
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("runner_under_test", toolchains.runner())
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 1000])
def test_a_sample_of_rounds_is_in_order_and_one_of_each_neighbourhood(runner_module, count):
    sample = runner_module.RoundSample(8)
    for i in range(count):
        sample.add((i, -i))
    assert sample.count == count
    assert all(round_ == (round_[0], -round_[0]) for round_ in sample.rounds)  # whole rounds
    assert [first // sample.stride for first, _ in sample.rounds] == list(range(len(sample.rounds)))
    assert min(count, 4) <= len(sample.rounds) <= 8
    if count <= 8:
        assert [first for first, _ in sample.rounds] == list(range(count))


def test_a_sample_has_the_median_of_the_whole(runner_module):
    times = np.random.default_rng(0).lognormal(size=100_000)
    sample = runner_module.RoundSample(10_000)
    for ms in times:
        sample.add([ms])
    assert np.median(sample.rounds) == pytest.approx(np.median(times), rel=0.05)


def test_a_network_of_microseconds_has_a_small_reply(tiny):
    files = [tiny / "tiny.tflite", tiny / "tiny-int8.tflite"]
    with open_device("local://") as device:
        results = measure_latencies(device, files, BenchmarkOptions(repetitions=25_000, warmup_s=0.2, time_limit_s=60), loads=2)
    for result in results:
        assert result.latency_count == 25_000
        assert len(result.latency_ms) <= 10_000
        assert result.rounds == results[0].rounds
        assert sum(result.rounds) == len(result.latency_ms)
        assert len(result.warmup_ms) <= 100 < result.warmup_count
        assert len(to_json(result)) < 300_000
    assert ratio(results[1], results[0]).blocks == 2


def test_a_network_of_a_minute_is_measured_once(tiny, tmp_path):
    runner = tmp_path / "slow"
    path = toolchains.runner()
    runner.write_text(SLOW_RUNNER.format(python=sys.executable, folder=str(path.parent), runner=str(path)))
    files = [tiny / "tiny.tflite", tiny / "tiny-int8.tflite"]
    with open_device("local://") as device:
        results = measure_latencies(device, files, BenchmarkOptions(runner=str(runner)), loads=20)
    for result in results:
        assert result.latency_ms == (60_000.0,)
        assert (result.rounds, result.latency_count) == ((1,), 1)
        assert result.first_ms == 60_000.0
        assert (result.warmup_ms, result.warmup_count) == ((), 0)  # the first inference was long enough
        assert not any("spread" in reason or "drift" in reason for reason in find_noise(result))
    assert "loaded 1×" in ratio(results[1], results[0]).why
    assert "60,000" in "".join(str(cell) for column in tabulate_results(results).columns for cell in column.cells)


def test_each_artifact_of_a_run_has_the_time_of_one(tiny, monkeypatch):
    def refuse(run, *_):
        raise InterruptedError(run.timeout_s)

    monkeypatch.setattr(execute, "invoke_runner", refuse)
    with open_device("local://") as device, pytest.raises(InterruptedError, match="1800"):
        measure_latencies(device, [tiny / "tiny.tflite"] * 3)


@pytest.mark.parametrize(("asked_s", "limit_s"), [(None, 600 + 5 * 60), (7.0, 7.0)])
def test_a_check_of_outputs_has_a_minute_for_each_sample(tiny, monkeypatch, asked_s, limit_s):
    def refuse(*_, timeout_s, **__):
        raise InterruptedError(timeout_s)

    monkeypatch.setattr(execution, "compute_outputs", refuse)
    batch = (execution.to_model_layout([np.zeros((5, 4), np.float32)], ())[0],)
    spec = TensorSpec(name="x", shape=(1, 4), dtype="float32", layout="")
    with pytest.raises(InterruptedError, match=f"^{limit_s}"):
        execution.run_artifact(tiny / "tiny.tflite", (spec,), (), batch, timeout_s=asked_s)


@pytest.mark.parametrize("name", ["benchmark_model", "executor_runner"])
def test_a_third_party_program_is_started_so_often_that_its_log_can_be_read(name):
    file = FileRequest(path="a", sha256="aa", format=third_party.THIRD_PARTY_RUNNERS[name].FORMAT)
    request = RunnerRequest(nonce="n", mode="measure", artifacts=(file, file), threads=1, reply="r", repetitions=10**6, loads=10**6)
    script = third_party.build_script(name, request)
    assert 2900 <= script.count("\nstep ") <= third_party.MAX_PROCESSES + 2
