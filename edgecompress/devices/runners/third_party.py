"""Measure with third-party programs that print their times: Google's `benchmark_model` and ExecuTorch's `executor_runner`.

Neither prints every sample, so each is started many times for the few inferences of which it prints all. A script runs these processes on
the device, artifacts in turn, and collects their output between marks with the run's nonce; the log is whole or absent, as a reply is.
A further program is a module with the names of `ThirdPartyRunner` and a line in `THIRD_PARTY_RUNNERS`.
"""

import mmap
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from edgecompress.devices.runners import benchmark_model, executor_runner
from edgecompress.devices.runners.process_times import ProcessTimes
from edgecompress.devices.runners.protocol import FileResult, RunnerReply, RunnerRequest
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.records import SCHEMA, OpTime

END_MARK: Final = "end"
MAX_PROCESSES: Final = 3000  # Each prints up to 3 kB, and the log of all must be read.


class ThirdPartyRunner(Protocol):
    """The constants and functions of a module that describes a third-party program."""

    @property
    def FORMAT(self) -> str:
        """The format of the artifacts that the program runs."""

    @property
    def SIGNATURE_TEXTS(self) -> tuple[bytes, ...]:
        """Texts that every build of the program prints and therefore contains."""

    @property
    def TIMED_PER_PROCESS(self) -> int:
        """The largest number of inferences of which one process prints every time."""

    def build_arguments(self, artifact: str, *, timed: int, threads: int, warmup_s: float) -> list[str]:
        """Return the arguments of one process with `timed` timed inferences."""

    def build_profile_arguments(self, artifact: str, *, threads: int, profile: bool) -> list[str] | None:
        """Return the arguments of a process that tells times per op and peak memory; None for a program that tells neither."""

    def parse_times(self, text: str, *, timed: int) -> ProcessTimes:
        """Return the times in the output of one process.

        Raises:
            ValueError: The output is not that of the program; says what is missing.
        """

    def parse_profile(self, text: str) -> tuple[tuple[OpTime, ...], int]:
        """Return (times per op, peak memory in bytes); () and 0 where the output does not tell them."""


THIRD_PARTY_RUNNERS: Final[dict[str, ThirdPartyRunner]] = {"benchmark_model": benchmark_model, "executor_runner": executor_runner}


def recognize_runner(runner: Path) -> str:
    """Return the key in `THIRD_PARTY_RUNNERS` of a program by the texts in it, whatever its file is called; "" for any other program."""
    if not runner.stat().st_size:
        return ""
    with runner.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
        return next(
            (name for name, module in THIRD_PARTY_RUNNERS.items() if all(program.find(text) >= 0 for text in module.SIGNATURE_TEXTS)), ""
        )


@dataclass(frozen=True, slots=True)
class _ProcessRun:
    """One process for one artifact with `timed` timed inferences; 0 for the process that tells times per op and memory."""

    artifact: int
    loading: int
    timed: int
    argv: tuple[str, ...]


def check_supported(name: str, request: RunnerRequest) -> None:
    """Refuse a request that this program cannot carry out.

    Raises:
        ConfigError: The request has another format, or asks for outputs.
    """
    if request.mode != "measure":
        raise ConfigError(f"{name}: measures only, it does not give outputs; use the runner of device_tests/runners/native")
    if any(file.format != THIRD_PARTY_RUNNERS[name].FORMAT for file in request.artifacts):
        raise ConfigError(f"{name}: runs {THIRD_PARTY_RUNNERS[name].FORMAT} files only; leave the others out, or give another runner")


def build_script(name: str, request: RunnerRequest) -> str:
    """Return the shell script that runs all processes of a request and writes the log to `request.reply`; it lies in the work folder."""
    lines = [
        'cd "${0%/*}" || exit 1',
        f"log={shlex.quote(request.reply)} began=$(date +%s)",
        'exec 3>&2 >"$log.tmp" 2>&1',
        f'step() {{ printf \'\\n%s %s\\n\' {request.nonce} "$1"; shift; "$@" </dev/null || failed $?; }}',
        'failed() { tail -n 5 "$log.tmp" >&3; exit "$1"; }',
        f'finish() {{ printf \'\\n%s {END_MARK}\\n\' {request.nonce}; mv "$log.tmp" "$log"; exit; }}',
        "date -u +%Y-%m-%dT%H:%M:%S+00:00",
    ]
    loading = 0
    for number, step in enumerate(_plan_processes(name, request)):
        if step.loading != loading:
            lines.append(f"[ $(($(date +%s) - began)) -lt {max(1, int(request.time_limit_s))} ] || finish")
            loading = step.loading
        lines.append(f"step {number} ./runner {shlex.join(step.argv)}")
    return "\n".join([*lines, "finish", ""])


def parse_log(name: str, data: bytes, request: RunnerRequest, *, subject: str) -> RunnerReply:
    """Return the reply that the log of such a script amounts to.

    Raises:
        DeviceError: The log is of another run, cut off, or not of this program.
    """
    head, *parts = re.split(rf"^{request.nonce} (\d{{1,9}}|{END_MARK})$", sanitize(data.decode(errors="replace")), flags=re.MULTILINE)
    if len(parts) < 2 or parts[-2] != END_MARK:
        raise DeviceError(f"{subject}: the log of {name} is not of this run or was cut off; run it again")
    steps, told = tuple(_plan_processes(name, request)), dict(zip(map(int, parts[:-2:2]), parts[1:-2:2], strict=True))
    if list(told) != list(range(len(told))) or len(told) > len(steps):
        raise DeviceError(f"{subject}: the log of {name} is out of order; run it again")
    try:
        results, peak = _collect_results(THIRD_PARTY_RUNNERS[name], request, [(steps[number], text) for number, text in told.items()])
    except ValueError as error:
        raise DeviceError(
            f"{subject}: what {name} printed cannot be used: {sanitize(str(error), limit=200)}; is it a current one?"
        ) from error
    return RunnerReply(
        schema=SCHEMA,
        nonce=request.nonce,
        runner=name,
        threads=request.threads,
        started_at=head.strip()[:40],
        peak_rss_bytes=peak,
        results=results,
        cpu_mask=request.cpu_mask,
    )


def _plan_processes(name: str, request: RunnerRequest) -> Iterator[_ProcessRun]:
    """Yield the processes of a request in their order: loading by loading for every artifact, then those for profiles."""
    module = THIRD_PARTY_RUNNERS[name]
    most = max(1, MAX_PROCESSES // len(request.artifacts))
    loadings = min(most, max(request.loads, -(-request.repetitions // module.TIMED_PER_PROCESS)))
    repetitions = min(request.repetitions, loadings * module.TIMED_PER_PROCESS)
    for k in range(loadings):
        timed = repetitions * (k + 1) // loadings - repetitions * k // loadings
        order = range(len(request.artifacts))
        for i in order if k % 2 == 0 else reversed(order):  # each file follows and precedes the others equally often
            argv = module.build_arguments(
                request.artifacts[i].path, timed=timed, threads=request.threads, warmup_s=request.warmup_s / loadings
            )
            yield _ProcessRun(i, k, timed, tuple(argv))
    for i, file in enumerate(request.artifacts):
        if extra := module.build_profile_arguments(file.path, threads=request.threads, profile=request.profile):
            yield _ProcessRun(i, loadings, 0, tuple(extra))


def _collect_results(
    module: ThirdPartyRunner, request: RunnerRequest, told: Sequence[tuple[_ProcessRun, str]]
) -> tuple[tuple[FileResult, ...], int]:
    results, peaks = [], [0]
    for i, file in enumerate(request.artifacts):
        printed = [module.parse_times(text, timed=step.timed) for step, text in told if step.artifact == i and step.timed]
        profile: tuple[OpTime, ...] = ()
        for step, text in told:
            if step.artifact == i and not step.timed:
                profile, peak = module.parse_profile(text)
                peaks.append(peak)
        if not printed:
            raise ValueError(f"nothing about {file.path}")
        results.append(
            FileResult(
                sha256=file.sha256,  # the device confirmed it to `send_files`
                backend=printed[0].backend,
                load_ms=printed[0].load_ms,
                first_ms=printed[0].first_ms,
                warmup_ms=tuple(ms for one in printed for ms in one.warmup_ms),
                latency_ms=tuple(ms for one in printed for ms in one.latency_ms),
                rounds=tuple(len(one.latency_ms) for one in printed),
                profile=profile if request.profile else (),
                notes=_list_notes(len(printed), profile, peaks[-1], request),
            )
        )
    return tuple(results), max(peaks)


def _list_notes(processes: int, profile: Sequence[OpTime], peak: int, request: RunnerRequest) -> tuple[str, ...]:
    notes = [f"{processes} processes, since one prints the times of few inferences; each loaded the file and warmed up anew"]
    if request.profile and not profile:
        notes.append("no times per op: this runner did not tell them")
    if not peak:
        notes.append("no peak memory: this runner did not tell it")
    return tuple(notes)
