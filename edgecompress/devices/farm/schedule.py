"""The schedule of a farm: which device does which job next, decided without processes and without a clock."""

from dataclasses import dataclass, field
from typing import Final

from edgecompress.devices.inventory import InventoryEntry

# A lost link says nothing about the job. A timeout may be a silent link or a job that is too long, so it is tried only once more.
MAX_TRIES: Final = {"lost": 4, "late": 2}
MAX_FAILURES_IN_A_ROW: Final = 3  # a device that failed this often without a success in between gets no more jobs
BACK_OFF_S: Final = 1.0  # a device rests this long after its first failure in a row, twice as long after the second


@dataclass(slots=True)
class FarmJob:
    """Artifacts that one device measures or evaluates together."""

    number: int
    files: tuple[str, ...]
    lost_on: list[str] = field(default_factory=list)
    done_by: str = ""
    error: str = ""

    @property
    def is_open(self) -> bool:
        return not (self.done_by or self.error)


@dataclass(slots=True)
class FarmDevice:
    """A device of a farm with its current job. `quarantine` is the reason why it gets no more jobs, "" while it may."""

    name: str
    entry: InventoryEntry
    state: str = "idle"
    job: FarmJob | None = None
    done: int = 0
    failures: int = 0
    quarantine: str = ""
    not_before: float = 0.0


class Schedule:
    """The jobs and devices of one farm."""

    def __init__(self, devices: list[FarmDevice], jobs: list[FarmJob]) -> None:
        self.devices, self.jobs = devices, jobs
        self.waiting = list(jobs)

    @property
    def usable_devices(self) -> list[FarmDevice]:
        return [device for device in self.devices if not device.quarantine]

    @property
    def is_over(self) -> bool:
        return not any(job.is_open for job in self.jobs)

    def next_job_for(self, device: FarmDevice) -> FarmJob | None:
        """Return the first waiting job that `device` has not lost; it gets a job that it lost only when every device has lost it."""
        names = {other.name for other in self.usable_devices}
        fresh = (job for job in self.waiting if device.name not in job.lost_on)
        lost = (job for job in self.waiting if names <= set(job.lost_on))
        return None if device.quarantine else next(fresh, None) or next(lost, None)

    def start_next_job(self, device: FarmDevice) -> FarmJob | None:
        """Give `device` its next job."""
        job = self.next_job_for(device)
        if job is not None:
            self.waiting.remove(job)
        device.job = job
        return job

    def finish_job(self, device: FarmDevice) -> FarmJob:
        """Record that the job of `device` is done."""
        assert device.job is not None
        job, device.job = device.job, None
        job.done_by, device.failures = device.name, 0
        device.done += 1
        return job

    def record_failure(self, device: FarmDevice, kind: str, why: str, now: float) -> None:
        """Record a failure: a lost job waits for another device, the job of a crashed runner is not tried again.

        Args:
            kind: `lost`, `late`, `device` (the device is at fault, or refuses) or `job` (the files are at fault, not the device).
            why: The message.
            now: Seconds on any clock, for the pause of the device.
        """
        job, device.job = device.job, None
        if job is not None and kind in MAX_TRIES:
            job.lost_on.append(device.name)
            if len(job.lost_on) < MAX_TRIES[kind]:
                self.waiting.insert(0, job)
            else:
                job.error = f"{why} (tried {len(job.lost_on)} times)"
        elif job is not None:
            job.error = why
        if job is None or kind != "job":
            device.failures += 1
            device.not_before = now + BACK_OFF_S * device.failures
            if device.failures >= MAX_FAILURES_IN_A_ROW:
                device.quarantine = why
        if not self.usable_devices:
            for remaining in self.waiting:
                remaining.error = f"no device is left: {why}"
            self.waiting.clear()
