"""The schedule of a farm: lost jobs, repeated failures and quarantine, without processes."""

from edgecompress.devices.farm import FarmDevice, FarmJob, Schedule
from edgecompress.devices.inventory import InventoryEntry


def make_schedule(names, count):
    """Return a schedule of `count` jobs, and its devices."""
    devices = [FarmDevice(name, InventoryEntry(url=f"ssh://{name}")) for name in names]
    return Schedule(devices, [FarmJob(number, (f"{number}.tflite",)) for number in range(count)]), *devices


def test_a_lost_job_goes_first_and_to_another_device():
    plan, a, b = make_schedule("ab", 2)
    lost = plan.start_next_job(a)
    plan.record_failure(a, "lost", "gone", 0.0)
    assert plan.next_job_for(b) is lost
    assert plan.next_job_for(a) is plan.jobs[1]


def test_a_job_that_every_device_lost_may_be_tried_again_but_not_for_ever():
    plan, a = make_schedule("a", 1)
    for attempt in range(4):
        assert plan.start_next_job(a) is plan.jobs[0], attempt
        a.failures = 0
        plan.record_failure(a, "lost", "gone", 0.0)
    assert plan.jobs[0].error == "gone (tried 4 times)"
    assert plan.is_over


def test_three_failures_in_a_row_and_no_fewer_quarantine_a_device():
    plan, a, _ = make_schedule("ab", 9)
    for kind in ("device", "lost", "done", "device", "lost", "device"):
        assert not a.quarantine
        plan.start_next_job(a)
        if kind == "done":
            plan.finish_job(a)
        else:
            plan.record_failure(a, kind, f"{kind} at fault", 0.0)
    assert a.quarantine == "device at fault"
    assert plan.next_job_for(a) is None


def test_a_bad_job_is_not_held_against_the_device():
    plan, a = make_schedule("a", 4)
    for _ in range(4):
        plan.start_next_job(a)
        plan.record_failure(a, "job", "no such file", 0.0)
    assert not a.quarantine
    assert all(task.error == "no such file" for task in plan.jobs)
