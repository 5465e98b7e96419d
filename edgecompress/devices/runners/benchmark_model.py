"""TensorFlow Lite's `benchmark_model`, as the user has it, for `.tflite` files: its arguments and what it prints.

Of its inferences it prints the first, the last and statistics, in whole microseconds: of two it prints both. Ours are therefore two to a
process, after a warm-up of which the first and last are known too.

References:
    tensorflow/lite/tools/benchmark/README.md and benchmark_model.cc (`BenchmarkModel::Run`, `BenchmarkLoggingListener`).
"""

import re
from typing import Final

from edgecompress.devices.runners.printed import Printed, bounded
from edgecompress.records import OpTime

FORMAT: Final = "tflite"
SAYS: Final = (b"Inference timings in us: ", b"num_runs")
TIMED: Final = 2
SHORTEST_WARMUP_S = 0.05  # a process begins on cold caches, and often on another core
PROFILED_RUNS = 10
LOGGED = r"^(?:INFO: |\S+ tflite\s*: )?"  # nothing, or what the log of the build puts before a line
NUMBER = r"([0-9.]{1,20}(?:e\+?\d{1,2})?)"
RUNS = re.compile(rf"{LOGGED}count=(\d{{1,9}})(?: first={NUMBER})? curr={NUMBER}(?=[ (]|$)", re.MULTILINE)
SUMMARY = re.compile(rf"{LOGGED}Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, ", re.MULTILINE)
PEAK = re.compile(rf"{LOGGED}Overall peak memory footprint \(MB\) via periodic monitoring: {NUMBER}", re.MULTILINE)
OPS = re.compile(r"^Operator-wise Profiling Info.*?= Summary by node type =+\n[^\n]*\n(.*?)\n\s*\n", re.MULTILINE | re.DOTALL)


def arguments(artifact: str, *, timed: int, threads: int, warmup_s: float) -> list[str]:
    warm = max(warmup_s, SHORTEST_WARMUP_S)
    return [*_common(artifact, threads), f"--num_runs={timed}", "--min_secs=0", "--warmup_runs=2", f"--warmup_min_secs={warm:g}"]


def profile_arguments(artifact: str, *, threads: int, profile: bool) -> list[str]:
    extra = ["--enable_op_profiling=true"] if profile else []
    return [*_common(artifact, threads), f"--num_runs={PROFILED_RUNS}", "--min_secs=0", "--report_peak_memory_footprint=true", *extra]


def read(text: str, *, timed: int) -> Printed:
    """Return the times of one process; see `foreign.Foreign.read`."""
    runs, summary = RUNS.findall(text), SUMMARY.search(text)
    if len(runs) < 2 or summary is None:
        raise ValueError("no lines `count=…` and `Inference timings in us: …`")
    (_, warm_first, warm_last), (count, first, last) = runs[0], runs[1]
    if int(count) != timed:
        raise ValueError(f"{count} timed inferences where {timed} were asked for")
    # Without `first` all were the same.
    samples = (bounded(first or last), bounded(last))[-timed:]
    return Printed(
        backend="TFLite benchmark_model",
        load_ms=bounded(summary[1]) / 1e3,
        first_ms=bounded(warm_first or warm_last) / 1e3,
        warmup_ms=(bounded(warm_last) / 1e3,),
        latency_ms=tuple(us / 1e3 for us in samples),
    )


def read_profile(text: str) -> tuple[tuple[OpTime, ...], int]:
    """Return (times per op, peak memory in bytes) of a process started with `profile_arguments`; see `foreign.Foreign.read_profile`."""
    peak, table = PEAK.search(text), OPS.search(text)
    ops = []
    for line in table[1].splitlines() if table else ():
        columns = [column.strip() for column in line.strip().split("\t")]  # type, count, avg ms, avg %, cdf %, mem KB, times called
        if len(columns) != 7:
            raise ValueError(f"a line of the table of ops has {len(columns)} columns")
        ops.append(OpTime(name=columns[0], calls=bounded(columns[6]), ms=bounded(columns[2])))
    return tuple(ops), round(bounded(peak[1]) * 2**20) if peak else 0


def _common(artifact: str, threads: int) -> list[str]:
    return [f"--graph={artifact}", f"--num_threads={threads}"]
