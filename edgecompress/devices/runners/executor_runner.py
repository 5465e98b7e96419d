"""ExecuTorch's `executor_runner` for `.pte` files: its arguments and the parser of its output.

Current builds print the time of every iteration; older ones print only the total, which gives no samples, and are refused. The program
fills its inputs with ones and has no warm-up, so the first iterations serve as warm-up.

References:
    executorch/examples/portable/executor_runner/executor_runner.cpp.
"""

import re
from typing import Final

from edgecompress.devices.runners.process_times import ProcessTimes, parse_time
from edgecompress.records import OpTime

FORMAT: Final = "executorch"
SIGNATURE_TEXTS: Final = (b"Model executed successfully", b"num_executions")
TIMED_PER_PROCESS: Final = 10
WARMUPS = 3  # iterations that do not count, the first inference among them
NUMBER = r"(\d{1,12}(?:\.\d{1,9})?)"
ITERATION = re.compile(rf"\] Iteration (\d{{1,9}}) of (\d{{1,9}}): {NUMBER} ms$", re.MULTILINE)
LOADED = re.compile(rf"\] Model loaded in {NUMBER} ms\.$", re.MULTILINE)


def build_arguments(artifact: str, *, timed: int, threads: int, warmup_s: float) -> list[str]:
    return [f"--model_path={artifact}", f"--num_executions={WARMUPS + timed}", f"--cpu_threads={threads}"]


def build_profile_arguments(artifact: str, *, threads: int, profile: bool) -> None:
    return None


def parse_times(text: str, *, timed: int) -> ProcessTimes:
    """Return the times that one process printed; see `third_party.ThirdPartyRunner.parse_times`."""
    found, loaded = ITERATION.findall(text), LOADED.search(text)
    expected = [(str(i + 1), str(WARMUPS + timed)) for i in range(WARMUPS + timed)]
    if [(number, of) for number, of, _ in found] != expected or loaded is None:
        raise ValueError("no line `Iteration … of …` for each inference, which current builds of executor_runner print")
    times = tuple(parse_time(ms) for _, _, ms in found)
    return ProcessTimes(
        backend="ExecuTorch executor_runner",
        load_ms=parse_time(loaded[1]),
        first_ms=times[0],
        warmup_ms=times[1:WARMUPS],
        latency_ms=times[WARMUPS:],
    )


def parse_profile(text: str) -> tuple[tuple[OpTime, ...], int]:
    return (), 0
