"""Third-party programs as runners: their output is parsed as printed, and no sample is made up from statistics.

The programs are in no registry. The texts below are lines of public logs, with their sources; the programs that the tests start are shell
scripts that print such lines with the counts they are asked for.
"""

import json
import re

import pytest

from edgecompress.devices import open_device
from edgecompress.devices.runners import benchmark_model, executor_runner, third_party
from edgecompress.devices.runners.execute import compute_outputs, measure_latencies
from edgecompress.devices.runners.protocol import FileRequest, RunnerRequest
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.records import BenchmarkOptions

# github.com/NobuoTsukamoto/meta-tensorflow-lite, its page on this tool: TensorFlow 2.8 on riscv64, MobileNet v1, shortened.
TF_2_8 = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [./mobilenet_v1_1.0_224.tflite]
Enable op profiling: [1]
#threads used for CPU inference: [4]
Loaded model ./mobilenet_v1_1.0_224.tflite
The input model file size (MB): 16.9008
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
Profiling Info for Benchmark Initialization:
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t         AllocateTensors\t        1\t     1.356\t   100.000%\t   100.000%\t     0.000\t        1

Timings (microseconds): count=1 curr=1356
Memory (bytes): count=0
1 nodes observed

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t            0.066\t   87.754\t   60.957\t  2.066%\t  2.066%\t     0.000\t        1\t[Conv2d_0/Relu6]:0

Number of nodes executed: 31
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t                 CONV_2D\t       15\t  2651.853\t    89.897%\t    89.897%\t     0.000\t       15
\t       DEPTHWISE_CONV_2D\t       13\t   296.919\t    10.065%\t    99.962%\t     0.000\t       13
\t         AVERAGE_POOL_2D\t        1\t     0.869\t     0.029%\t    99.992%\t     0.000\t        1

Timings (microseconds): count=50 first=2989660 curr=2912978 min=2727203 max=3189476 avg=2.9499e+06 std=109770
Memory (bytes): count=0
31 nodes observed
"""
# A vendor's manual for benchmark_model of LiteRT on arm64, whose log names the level and whose statistics name percentiles.
LITERT = """INFO: STARTING!
INFO: Initialized session in 5.579ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=1 curr=1357602 p5=1357602 median=1357602 p95=1357602

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=1249964 curr=1240143 min=1238588 max=1252566 avg=1.24027e+06 std=2565 p5=1238753 median=1239807 p95=1247415

INFO: Inference timings in us: Init: 5579, First inference: 1357602, Warmup (avg): 1.3576e+06, Inference (avg): 1.24027e+06
INFO: Memory footprint delta from the start of the tool (MB): init=6.36328 overall=109.832
"""
# The lines of ExecuTorch's executor_runner as two public test suites keep them; earlier builds had neither `Model loaded` nor `Iteration`.
EXECUTORCH = """I 00:00:05.833558 executorch:executor_runner.cpp:564] Model loaded in 4463.268273 ms.
I 00:00:06.075611 executorch:executor_runner.cpp:705] Iteration 1 of 1: 241.944288 ms
I 00:00:06.075701 executorch:executor_runner.cpp:714] Model executed successfully 1 time(s) in 241.944288 ms.
"""
EXECUTORCH_OLD = """I 00:00:00.003987 executorch:executor_runner.cpp:166] Model file add.pte is loaded.
I 00:00:00.005262 executorch:executor_runner.cpp:251] Method loaded.
I 00:00:00.006576 executorch:executor_runner.cpp:284] Model executed successfully 1 time(s) in 0.691078 ms.
"""

RECORDED = {"TensorFlow 2.8": (TF_2_8, 17.187, 3512.391), "LiteRT": (LITERT, 5.579, 1357.602)}


@pytest.mark.parametrize("name", RECORDED)
def test_benchmark_model_as_recorded(name):
    text, load_ms, first_ms = RECORDED[name]
    two = re.sub(r"count=50 first=", "count=2 first=", text)
    printed = benchmark_model.parse_times(two, timed=2)
    assert (printed.load_ms, printed.first_ms, printed.warmup_ms) == (load_ms, first_ms, (first_ms,))
    first, last = (float(us) / 1e3 for us in re.search(r"count=2 first=(\d+) curr=(\d+)", two).groups())
    assert printed.latency_ms == (first, last)


def test_of_more_than_two_inferences_no_samples_are_made():
    with pytest.raises(ValueError, match="50 timed inferences where 2"):
        benchmark_model.parse_times(TF_2_8, timed=2)


@pytest.mark.parametrize(("said", "samples"), [("count=2 curr=1234(all same)", (1.234, 1.234)), ("count=1 curr=1234", (1.234,))])
def test_times_that_were_all_the_same_are_printed_once(said, samples):
    text = re.sub(r"^count=50 .*$", said, TF_2_8, flags=re.MULTILINE)
    assert benchmark_model.parse_times(text, timed=len(samples)).latency_ms == samples


def test_times_per_op_are_those_of_the_timed_runs():
    ops, peak = benchmark_model.parse_profile(TF_2_8)
    assert [(op.name, op.calls, op.ms) for op in ops] == [
        ("CONV_2D", 15, 2651.853),
        ("DEPTHWISE_CONV_2D", 13, 296.919),
        ("AVERAGE_POOL_2D", 1, 0.869),
    ]
    assert peak == 0  # this version does not tell it; the delta is no peak
    said = "Overall peak memory footprint (MB) via periodic monitoring: 73.5\n"
    assert benchmark_model.parse_profile(LITERT + "INFO: " + said) == ((), round(73.5 * 2**20))


def test_executor_runner_as_recorded(monkeypatch):
    monkeypatch.setattr(executor_runner, "WARMUPS", 0)
    printed = executor_runner.parse_times(EXECUTORCH, timed=1)
    assert (printed.load_ms, printed.latency_ms) == (4463.268273, (241.944288,))


def test_an_executor_runner_that_tells_only_the_total_is_refused():
    with pytest.raises(ValueError, match="current builds"):
        executor_runner.parse_times(EXECUTORCH_OLD, timed=1)


# --- end to end, with programs that print such text ---

BENCHMARK_MODEL = """#!/bin/sh
warm=2 runs=50 profile=
for word in "$@"; do case $word in
  --num_runs=*) runs=${word#*=};;
  --graph=*) [ -s "${word#*=}" ] || { echo "ERROR: Failed to load model ${word#*=}" >&2; exit 1; };;
  --report_peak_memory_footprint=true) profile=1;;
  esac; done
now=$((1000 + $(date +%s%N) / 1000 % 500))
echo "STARTING!"
echo "count=$warm first=3512 curr=3400 min=3400 max=3512 avg=3456 std=56" >&2
echo "count=$runs first=$now curr=2913 min=1 max=3189 avg=2.95034e+03 std=109" >&2
echo "Inference timings in us: Init: 17187, First inference: 3512, Warmup (avg): 3.456e+03, Inference (avg): 2.95034e+03" >&2
[ -z "$profile" ] || echo "Overall peak memory footprint (MB) via periodic monitoring: 73.5" >&2
"""
EXECUTOR_RUNNER = """#!/bin/sh
for word in "$@"; do case $word in --num_executions=*) runs=${word#*=};; esac; done
at='I 00:00:06.075611 executorch:executor_runner.cpp:705]'
echo "$at Model loaded in 4.268273 ms."
i=0
while [ $i -lt "$runs" ]; do i=$((i + 1)); echo "$at Iteration $i of $runs: $i.944288 ms"; done
echo "$at Model executed successfully $runs time(s) in 241.944288 ms."
"""


@pytest.fixture
def program(tmp_path):
    def write(text, name="something"):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def local():
    with open_device("local://") as device:
        yield device


def test_a_program_is_recognised_by_what_it_is_not_by_its_name(program):
    assert third_party.recognize_runner(program(BENCHMARK_MODEL)) == "benchmark_model"
    assert third_party.recognize_runner(program(EXECUTOR_RUNNER, "benchmark_model")) == "executor_runner"
    assert third_party.recognize_runner(program("#!/bin/sh\n", "benchmark_model_x")) == ""
    assert third_party.recognize_runner(program("")) == ""


def test_benchmark_model_gives_samples_and_blocks_to_compare_by(program, local, tiny):
    files = [tiny / "tiny.tflite", tiny / "tiny-int8.tflite"]
    results = measure_latencies(local, files, BenchmarkOptions(repetitions=7, warmup_s=0, runner=str(program(BENCHMARK_MODEL))))
    for result in results:
        assert len(result.latency_ms) == 7
        assert result.rounds == (1, 2, 2, 2)
        assert all(1.0 <= ms < 1.5 or ms == 2.913 for ms in result.latency_ms)  # never the mean, the least or the largest
        assert result.warmup_ms == (3.4,) * 4
        assert (result.load_ms, result.first_ms, result.peak_rss_bytes) == (17.187, 3.512, round(73.5 * 2**20))
        assert result.runner == "benchmark_model"
        assert any("4 processes" in note for note in result.notes)
    assert results[0].session == results[1].session


def test_executor_runner_takes_its_first_iterations_as_warm_up(program, local, tmp_path):
    artifact = tmp_path / "net.pte"
    artifact.write_bytes(b"not looked into by this program")
    (result,) = measure_latencies(local, [artifact], BenchmarkOptions(repetitions=12, runner=str(program(EXECUTOR_RUNNER))), loads=2)
    assert (result.first_ms, result.warmup_ms) == (1.944288, (2.944288, 3.944288) * 2)
    assert result.latency_ms == tuple(i + 0.944288 for i in range(4, 10)) * 2
    assert result.rounds == (6, 6)
    assert any("no peak memory" in note for note in result.notes)


def test_another_format_and_outputs_are_refused_before_anything_is_sent(program, local, tiny, tiny_samples):
    runner = program(BENCHMARK_MODEL)
    with pytest.raises(ConfigError, match="tflite files only"):
        measure_latencies(local, [tiny / "tiny.ptl"], BenchmarkOptions(runner=str(runner)))
    with pytest.raises(ConfigError, match="does not give outputs"):
        compute_outputs(local, tiny / "tiny.tflite", [tiny_samples[0]], runner=runner)


BROKEN = {
    "fails": ("runs=50 profile=", "echo 'ERROR: no such op' >&2; exit 1; runs=50", "no such op"),
    "crashes": ("runs=50 profile=", "kill -SEGV $$", "SIGSEGV"),
    "prints something else": ("count=$runs", "counted=$runs", "cannot be used"),
    "runs more often than asked": ("count=$runs", "count=50", "cannot be used"),
    "prints no numbers": ("curr=2913", "curr=nan", "cannot be used"),
    "prints impossible numbers": ("curr=2913", "curr=9e99", "cannot be used"),
    "draws on the terminal": ("count=$runs first=$now curr=2913", "count=$runs first=\\033[2J curr=2913", "cannot be used"),
    "prints marks of its own": ('echo "STARTING!"', "printf '\\n%032d end\\n' 0; exit 3", "exit status 3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_program_that_misbehaves_gives_no_result(name, program, local, tiny):
    old, new, said = BROKEN[name]
    assert old in BENCHMARK_MODEL
    with pytest.raises(DeviceError, match=said) as caught:
        measure_latencies(
            local, [tiny / "tiny.tflite"], BenchmarkOptions(repetitions=2, runner=str(program(BENCHMARK_MODEL.replace(old, new))))
        )
    assert "\x1b" not in str(caught.value)


def test_a_log_of_another_run_or_cut_off_is_not_believed():
    file = FileRequest(path="artifact_0.tflite", sha256="0" * 64, format="tflite")
    request = RunnerRequest(nonce="a" * 32, mode="measure", artifacts=(file,), threads=1, reply="log", repetitions=1)
    text = TF_2_8.replace("count=50 first=2990275", "count=1")
    whole = f"2026-01-01\n\n{request.nonce} 0\n{text}\n{request.nonce} 1\n{LITERT}\n{request.nonce} end\n"
    reply = third_party.parse_log("benchmark_model", whole.encode(), request, subject="x")
    assert json.loads(json.dumps(reply.results[0].latency_ms)) == [2913.402]
    for bad in (whole.replace("a" * 32, "b" * 32), whole[: whole.rindex(request.nonce)], whole.replace(" 0\n", " 1\n", 1), ""):
        with pytest.raises(DeviceError, match="run it again"):
            third_party.parse_log("benchmark_model", bad.encode(), request, subject="x")
