"""Who does what next: the queue, the devices and their failures, without processes or clocks."""

from dataclasses import dataclass, field

from edgecompress.devices.inventory import Entry

TRIES = {"lost": 4, "late": 2}  # late is a link that fell silent, or a job that is too long for its time: which one cannot be seen
FAILURES = 3
BACK_OFF_S = 1.0  # after the first failure in a row; twice that after the second


@dataclass(slots=True)
class Task:
    """A job: artifacts that one device measures together."""

    number: int
    files: tuple[str, ...]
    lost_on: list[str] = field(default_factory=list)
    done_by: str = ""
    error: str = ""

    @property
    def is_open(self) -> bool:
        return not (self.done_by or self.error)


@dataclass(slots=True)
class Lane:
    """A device as the farm sees it. `quarantine` is why it gets no more jobs."""

    name: str
    entry: Entry
    state: str = "idle"
    task: Task | None = None
    done: int = 0
    failures: int = 0
    quarantine: str = ""
    not_before: float = 0.0


class Schedule:
    """The jobs and devices of one farm."""

    def __init__(self, lanes: list[Lane], tasks: list[Task]) -> None:
        self.lanes, self.tasks = lanes, tasks
        self.waiting = list(tasks)

    @property
    def live(self) -> list[Lane]:
        return [lane for lane in self.lanes if not lane.quarantine]

    @property
    def is_over(self) -> bool:
        return not any(task.is_open for task in self.tasks)

    def next_for(self, lane: Lane) -> Task | None:
        """Return the first job waiting that `lane` has not lost; one that it has lost only when every device has."""
        names = {other.name for other in self.live}
        fresh = (task for task in self.waiting if lane.name not in task.lost_on)
        lost = (task for task in self.waiting if names <= set(task.lost_on))
        return None if lane.quarantine else next(fresh, None) or next(lost, None)

    def start(self, lane: Lane) -> Task | None:
        """Give `lane` its next job."""
        task = self.next_for(lane)
        if task is not None:
            self.waiting.remove(task)
        lane.task = task
        return task

    def finish(self, lane: Lane) -> Task:
        """Note that the lane's job is done."""
        assert lane.task is not None
        task, lane.task = lane.task, None
        task.done_by, lane.failures = lane.name, 0
        lane.done += 1
        return task

    def fail(self, lane: Lane, kind: str, why: str, now: float) -> None:
        """Note a failure: a lost job waits for another device, the job of a crashed runner is not tried again.

        Args:
            kind: `lost`, `late`, `device` (at fault, or refusing) or `job` (the files are; the device is not to blame).
            why: The message.
            now: Seconds on any clock, for the pause of the device.
        """
        task, lane.task = lane.task, None
        if task is not None and kind in TRIES:
            task.lost_on.append(lane.name)
            if len(task.lost_on) < TRIES[kind]:
                self.waiting.insert(0, task)
            else:
                task.error = f"{why} (tried {len(task.lost_on)} times)"
        elif task is not None:
            task.error = why
        if task is None or kind != "job":
            lane.failures += 1
            lane.not_before = now + BACK_OFF_S * lane.failures
            if lane.failures >= FAILURES:
                lane.quarantine = why
        if not self.live:
            for left in self.waiting:
                left.error = f"no device is left: {why}"
            self.waiting.clear()
