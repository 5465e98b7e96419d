"""Run a farm: start a process for each device, follow the reports of all, and hand each result on as it arrives."""

import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, overload

import msgspec

from edgecompress.devices.farm.messages import FarmWork, WorkerOrder, WorkerReport
from edgecompress.devices.farm.schedule import FarmDevice, FarmJob, Schedule
from edgecompress.devices.inventory import InventoryEntry
from edgecompress.devices.text import join_last_lines, sanitize
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.records import BenchmarkOptions, BenchmarkResult
from edgecompress.records.evaluation import Evaluation, EvaluationOptions

SHUTDOWN_TIMEOUT_S: Final = 60.0  # an interrupted device may take this long to end what runs there and to give its lease back
POLL_S: Final = 0.2  # devices whose pause is over are looked for this often
NAMED_FAILURES: Final = 5  # a message that lists more failed jobs than this would not be read

OnResult = Callable[[Any], object]  # takes a BenchmarkResult or an Evaluation
OnChange = Callable[[Schedule], object]


class FarmError(DeviceError):
    """Some jobs have no result; `results` are those of the others."""

    def __init__(self, message: str, results: tuple[Any, ...]) -> None:
        super().__init__(message)
        self.results = results


@overload
def run_farm(
    entries: Sequence[InventoryEntry],
    jobs: Sequence[Sequence[Path]],
    options: BenchmarkOptions,
    *,
    on_result: OnResult = ...,
    on_change: OnChange = ...,
) -> tuple[BenchmarkResult, ...]: ...


@overload
def run_farm(
    entries: Sequence[InventoryEntry],
    jobs: Sequence[Sequence[Path]],
    options: EvaluationOptions,
    *,
    on_result: OnResult = ...,
    on_change: OnChange = ...,
) -> tuple[Evaluation, ...]: ...


def run_farm(
    entries: Sequence[InventoryEntry],
    jobs: Sequence[Sequence[Path]],
    options: BenchmarkOptions | EvaluationOptions,
    *,
    on_result: OnResult = lambda _: None,
    on_change: OnChange = lambda _: None,
) -> tuple[Any, ...]:
    """Measure, or evaluate, every job on one of the devices of `entries`; return the results in the order of the jobs.

    A job that one device lost is done by another. A device that failed three times in a row gets no more jobs. An interrupt ends what runs
    on the devices and gives their leases back.

    Args:
        jobs: For each job the artifacts that one device takes together.
        options: Decide by their type whether artifacts are measured or evaluated.
        on_result: Called with each result as soon as it arrives.
        on_change: Called with the schedule whenever it may have changed.

    Raises:
        ConfigError: No devices or no jobs.
        FarmError: Jobs failed; says which and why, and has the results of the others.
    """
    if not entries or not jobs:
        raise ConfigError(f"a farm of {len(entries)} devices for {len(jobs)} jobs; give at least one of each")
    devices = [FarmDevice(entry.name or entry.url, entry) for entry in entries]
    schedule = Schedule(devices, [FarmJob(number, tuple(str(path.resolve()) for path in files)) for number, files in enumerate(jobs)])
    results: dict[int, tuple[Any, ...]] = {}
    with ExitStack() as stack:
        farm = _Farm(schedule, FarmWork(measuring=options) if isinstance(options, BenchmarkOptions) else FarmWork(scoring=options))
        stack.callback(farm.close)
        while not schedule.is_over:
            farm.dispatch()
            on_change(schedule)
            for device, report in farm.wait_for_reports():
                if (job := farm.apply_report(device, report)) is not None:
                    results[job.number] = report.results
                    for result in report.results:
                        on_result(result)
        on_change(schedule)
    in_order = tuple(result for number in sorted(results) for result in results[number])
    if failed := [job for job in schedule.jobs if job.error]:
        raise FarmError(_summarize_failures(schedule, failed), in_order)
    return in_order


def _summarize_failures(schedule: Schedule, failed: list[FarmJob]) -> str:
    files = "; ".join(f"{', '.join(Path(file).name for file in job.files)}: {job.error}" for job in failed[:NAMED_FAILURES])
    more = f"; and {len(failed) - NAMED_FAILURES} more" if len(failed) > NAMED_FAILURES else ""
    total = len(schedule.jobs)
    return f"pool: {len(failed)} of {total} jobs have no result: {files}{more}; results of the other {total - len(failed)} are kept"


class _WorkerProcess:
    """The process of one device."""

    def __init__(
        self, device: FarmDevice, work: FarmWork, inbox: "queue.SimpleQueue[tuple[_WorkerProcess, WorkerReport[Any] | None]]"
    ) -> None:
        self.device, self.inbox = device, inbox
        kind = WorkerReport[BenchmarkResult] if work.measuring else WorkerReport[Evaluation]
        self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        arguments = [msgspec.json.encode(part).decode() for part in (device.entry, work)]
        argv = [sys.executable, "-m", "edgecompress.devices.farm.worker", *arguments]
        # Its own session: Ctrl-C reaches the farm alone, which ends its devices by closing their input.
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, start_new_session=True)
        self.thread = threading.Thread(target=self._read_reports, daemon=True)
        self.thread.start()

    def send(self, order: WorkerOrder) -> None:
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(msgspec.json.encode(order) + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            return  # the process ended, which its thread reports

    def close_input(self) -> None:
        """Tell the process to end in an orderly way, without waiting for it."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            return

    def wait_until_ended(self) -> str:
        """Wait for the process, kill it where it takes too long, and return how it ended."""
        try:
            status = self.popen.wait(SHUTDOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
        self.thread.join(SHUTDOWN_TIMEOUT_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        with self.stderr:
            self.stderr.seek(0)
            said = join_last_lines(sanitize(self.stderr.read().decode(errors="replace")))
        return f"its process ended with status {status}{f': {said}' if said else ''}"

    def _read_reports(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.inbox.put((self, self.decoder.decode(line)))
        self.inbox.put((self, None))


class _Farm:
    """The processes that carry a schedule out."""

    def __init__(self, schedule: Schedule, work: FarmWork) -> None:
        self.schedule, self.work = schedule, work
        self.inbox: queue.SimpleQueue[tuple[_WorkerProcess, WorkerReport[Any] | None]] = queue.SimpleQueue()
        self.processes: dict[str, _WorkerProcess] = {}

    def dispatch(self) -> None:
        """Order every idle device for which a job waits to prepare itself."""
        now = time.monotonic()
        for device in self.schedule.usable_devices:
            if device.state == "idle" and now >= device.not_before and self.schedule.next_job_for(device) is not None:
                if device.name not in self.processes:
                    self.processes[device.name] = _WorkerProcess(device, self.work, self.inbox)
                device.state = "preparing"
                self.processes[device.name].send(WorkerOrder(do="prepare"))

    def wait_for_reports(self) -> list[tuple[FarmDevice, WorkerReport[Any]]]:
        """Wait a moment for a report; the end of a process counts as one."""
        try:
            process, report = self.inbox.get(timeout=POLL_S)
        except queue.Empty:
            return []
        if report is None:
            if self.processes.get(process.device.name) is process:
                del self.processes[process.device.name]
            process.close_input()
            why = process.wait_until_ended()
            report = WorkerReport(event="failed", kind="lost" if (process.popen.returncode or 0) <= 0 else "device", text=why)
        return [(process.device, report)]

    def apply_report(self, device: FarmDevice, report: WorkerReport[Any]) -> FarmJob | None:
        """Change the schedule by a report; return the job that the report finished."""
        if report.event == "state":
            device.state = report.text
        elif report.event == "ready":
            job = self.schedule.start_next_job(device)
            device.state = "measuring" if job else "giving the lease back"
            if device.name in self.processes:
                self.processes[device.name].send(WorkerOrder(do="run", files=job.files) if job else WorkerOrder(do="rest"))
        elif report.event == "failed":
            self.schedule.record_failure(device, report.kind, report.text, time.monotonic())
            device.state = "quarantined" if device.quarantine else "idle"
        else:
            device.state = "idle"
            return self.schedule.finish_job(device) if device.job else None
        return None

    def close(self) -> None:
        """End all processes at the same time."""
        for process in self.processes.values():
            process.close_input()
        for process in self.processes.values():
            process.wait_until_ended()
