"""Run a farm: a process for each device, their reports in one place, results handed on as they come."""

import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, overload

import msgspec

from edgecompress.devices.base import clean, last_lines
from edgecompress.devices.farm.messages import Order, Report, Work
from edgecompress.devices.farm.schedule import Lane, Schedule, Task
from edgecompress.devices.inventory import Entry
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.records import BenchmarkResult, Measuring
from edgecompress.records.evaluation import Evaluation, Scoring

END_S = 60.0  # an interrupted device may take this long to end what runs there and to give its lease back
LOOK_S = 0.2

Keep = Callable[[Any], object]  # a BenchmarkResult or an Evaluation
Watch = Callable[[Schedule], object]


class FarmError(DeviceError):
    """Some jobs have no result; `results` are those of the others."""

    def __init__(self, message: str, results: tuple[Any, ...]) -> None:
        super().__init__(message)
        self.results = results


@overload
def run_farm(
    entries: Sequence[Entry], jobs: Sequence[Sequence[Path]], how: Measuring, *, keep: Keep = ..., watch: Watch = ...
) -> tuple[BenchmarkResult, ...]: ...


@overload
def run_farm(
    entries: Sequence[Entry], jobs: Sequence[Sequence[Path]], how: Scoring, *, keep: Keep = ..., watch: Watch = ...
) -> tuple[Evaluation, ...]: ...


def run_farm(
    entries: Sequence[Entry],
    jobs: Sequence[Sequence[Path]],
    how: Measuring | Scoring,
    *,
    keep: Keep = lambda _: None,
    watch: Watch = lambda _: None,
) -> tuple[Any, ...]:
    """Measure, or evaluate, every job on some device of `entries`; return the results in the order of the jobs.

    A job that a device lost is done by another one. A device that failed three times in a row gets no more. An interrupt ends what runs
    on the devices and gives their leases back.

    Args:
        jobs: Artifacts that one device takes together, for each job.
        keep: Called with each result as soon as it is there.
        watch: Called with the schedule whenever it changed.

    Raises:
        ConfigError: No devices or no jobs.
        FarmError: Jobs failed; says which and why, and has the results of the others.
    """
    if not entries or not jobs:
        raise ConfigError(f"a farm of {len(entries)} devices for {len(jobs)} jobs; give at least one of each")
    lanes = [Lane(entry.name or entry.url, entry) for entry in entries]
    schedule = Schedule(lanes, [Task(number, tuple(str(path.resolve()) for path in files)) for number, files in enumerate(jobs)])
    results: dict[int, tuple[Any, ...]] = {}
    with ExitStack() as running:
        farm = _Farm(schedule, Work(measuring=how) if isinstance(how, Measuring) else Work(scoring=how))
        running.callback(farm.close)
        while not schedule.is_over:
            farm.order()
            watch(schedule)
            for lane, report in farm.reports():
                if (task := farm.take(lane, report)) is not None:
                    results[task.number] = report.results
                    for result in report.results:
                        keep(result)
        watch(schedule)
    found = tuple(result for number in sorted(results) for result in results[number])
    if failed := [task for task in schedule.tasks if task.error]:
        raise FarmError(_summary(schedule, failed), found)
    return found


def _summary(schedule: Schedule, failed: list[Task]) -> str:
    files = "; ".join(f"{', '.join(Path(file).name for file in task.files)}: {task.error}" for task in failed[:5])
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    total = len(schedule.tasks)
    return f"pool: {len(failed)} of {total} jobs have no result: {files}{more}; results of the other {total - len(failed)} are kept"


class _Process:
    """The process of one device."""

    def __init__(self, lane: Lane, work: Work, reports: "queue.SimpleQueue[tuple[_Process, Report[Any] | None]]") -> None:
        self.lane, self.reports = lane, reports
        self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Report[BenchmarkResult] if work.measuring else Report[Evaluation])
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        argv = [
            sys.executable,
            "-m",
            "edgecompress.devices.farm.worker",
            *(msgspec.json.encode(part).decode() for part in (lane.entry, work)),
        ]
        # Its own session: Ctrl-C reaches the farm alone, which ends its devices by closing their input.
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, start_new_session=True)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def tell(self, order: Order) -> None:
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(msgspec.json.encode(order) + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            return  # it ended, which its thread reports

    def end(self) -> None:
        """Let it end in an orderly way, without waiting."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            return

    def close(self) -> str:
        """Wait until it ended; return how it did."""
        try:
            status = self.popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
        self.thread.join(END_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        with self.stderr:
            self.stderr.seek(0)
            said = last_lines(clean(self.stderr.read().decode(errors="replace")))
        return f"its process ended with status {status}{f': {said}' if said else ''}"

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.reports.put((self, self.decoder.decode(line)))
        self.reports.put((self, None))


class _Farm:
    """The processes of a schedule."""

    def __init__(self, schedule: Schedule, work: Work) -> None:
        self.schedule, self.work = schedule, work
        self.inbox: queue.SimpleQueue[tuple[_Process, Report[Any] | None]] = queue.SimpleQueue()
        self.processes: dict[str, _Process] = {}

    def order(self) -> None:
        """Let every idle device prepare for which there is a job."""
        now = time.monotonic()
        for lane in self.schedule.live:
            if lane.state == "idle" and now >= lane.not_before and self.schedule.next_for(lane) is not None:
                if lane.name not in self.processes:
                    self.processes[lane.name] = _Process(lane, self.work, self.inbox)
                lane.state = "preparing"
                self.processes[lane.name].tell(Order(do="prepare"))

    def reports(self) -> list[tuple[Lane, Report[Any]]]:
        """Wait a moment for reports; a process that ended is one."""
        try:
            process, report = self.inbox.get(timeout=LOOK_S)
        except queue.Empty:
            return []
        if report is None:
            if self.processes.get(process.lane.name) is process:
                del self.processes[process.lane.name]
            process.end()
            why = process.close()
            report = Report(event="failed", kind="lost" if (process.popen.returncode or 0) <= 0 else "device", text=why)
        return [(process.lane, report)]

    def take(self, lane: Lane, report: Report[Any]) -> Task | None:
        """Change the schedule by a report; return the job that it finished."""
        if report.event == "state":
            lane.state = report.text
        elif report.event == "ready":
            task = self.schedule.start(lane)
            lane.state = "measuring" if task else "giving the lease back"
            if lane.name in self.processes:
                self.processes[lane.name].tell(Order(do="run", files=task.files) if task else Order(do="rest"))
        elif report.event == "failed":
            self.schedule.fail(lane, report.kind, report.text, time.monotonic())
            lane.state = "quarantined" if lane.quarantine else "idle"
        else:
            lane.state = "idle"
            return self.schedule.finish(lane) if lane.task else None
        return None

    def close(self) -> None:
        """End every process, all at once."""
        for process in self.processes.values():
            process.end()
        for process in self.processes.values():
            process.close()
