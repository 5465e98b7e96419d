"""TensorFlow Lite's `benchmark_model` for `.tflite` files: its arguments and the parser of its output.

The program prints the first inference, the last one and statistics, in whole microseconds. It is therefore started for two timed inferences
at a time, both of which it prints; of the warm-up it prints the first and the last too.

References:
    tensorflow/lite/tools/benchmark/README.md and benchmark_model.cc (`BenchmarkModel::Run`, `BenchmarkLoggingListener`).
"""

import re
from typing import Final

from edgecompress.devices.runners.process_times import ProcessTimes, parse_time
from edgecompress.records import OpTime

FORMAT: Final = "tflite"
SIGNATURE_TEXTS: Final = (b"Inference timings in us: ", b"num_runs")
TIMED_PER_PROCESS: Final = 2
MIN_WARMUP_S = 0.05  # a new process begins with cold caches and often on another core
PROFILED_RUNS = 10
LOGGED = r"^(?:INFO: |\S+ tflite\s*: )?"  # the prefix that some builds log before each line
NUMBER = r"([0-9.]{1,20}(?:e\+?\d{1,2})?)"
RUNS = re.compile(rf"{LOGGED}count=(\d{{1,9}})(?: first={NUMBER})? curr={NUMBER}(?=[ (]|$)", re.MULTILINE)
SUMMARY = re.compile(rf"{LOGGED}Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, ", re.MULTILINE)
PEAK = re.compile(rf"{LOGGED}Overall peak memory footprint \(MB\) via periodic monitoring: {NUMBER}", re.MULTILINE)
OPS = re.compile(r"^Operator-wise Profiling Info.*?= Summary by node type =+\n[^\n]*\n(.*?)\n\s*\n", re.MULTILINE | re.DOTALL)


def build_arguments(artifact: str, *, timed: int, threads: int, warmup_s: float) -> list[str]:
    warm = max(warmup_s, MIN_WARMUP_S)
    return [*_common_arguments(artifact, threads), f"--num_runs={timed}", "--min_secs=0", "--warmup_runs=2", f"--warmup_min_secs={warm:g}"]


def build_profile_arguments(artifact: str, *, threads: int, profile: bool) -> list[str]:
    extra = ["--enable_op_profiling=true"] if profile else []
    return [
        *_common_arguments(artifact, threads),
        f"--num_runs={PROFILED_RUNS}",
        "--min_secs=0",
        "--report_peak_memory_footprint=true",
        *extra,
    ]


def parse_times(text: str, *, timed: int) -> ProcessTimes:
    """Return the times that one process printed; see `third_party.ThirdPartyRunner.parse_times`."""
    runs, summary = RUNS.findall(text), SUMMARY.search(text)
    if len(runs) < 2 or summary is None:
        raise ValueError("no lines `count=…` and `Inference timings in us: …`")
    (_, warm_first, warm_last), (count, first, last) = runs[0], runs[1]
    if int(count) != timed:
        raise ValueError(f"{count} timed inferences where {timed} were asked for")
    # The line leaves `first` out when all inferences took the same time.
    samples = (parse_time(first or last), parse_time(last))[-timed:]
    return ProcessTimes(
        backend="TFLite benchmark_model",
        load_ms=parse_time(summary[1]) / 1e3,
        first_ms=parse_time(warm_first or warm_last) / 1e3,
        warmup_ms=(parse_time(warm_last) / 1e3,),
        latency_ms=tuple(us / 1e3 for us in samples),
    )


def parse_profile(text: str) -> tuple[tuple[OpTime, ...], int]:
    """Return (times per op, peak memory in bytes) of a process started with `build_profile_arguments`."""
    peak, table = PEAK.search(text), OPS.search(text)
    ops = []
    for line in table[1].splitlines() if table else ():
        columns = [column.strip() for column in line.strip().split("\t")]  # type, count, avg ms, avg %, cdf %, mem KB, times called
        if len(columns) != 7:
            raise ValueError(f"a line of the table of ops has {len(columns)} columns")
        ops.append(OpTime(name=columns[0], calls=parse_time(columns[6]), ms=parse_time(columns[2])))
    return tuple(ops), round(parse_time(peak[1]) * 2**20) if peak else 0


def _common_arguments(artifact: str, threads: int) -> list[str]:
    return [f"--graph={artifact}", f"--num_threads={threads}"]
