"""Lanes wait side by side and compute in turns; which of them is quicker changes neither results nor errors."""

import threading
from collections.abc import Iterator

import pytest

from edgecompress.pipeline.lanes import Lane, Turn, run_lanes


class Waits:
    """A lane that waits before each of its two results, and may fail after them."""

    def __init__(self, turn: Turn, name: str, log: list[str], error: BaseException | None = None) -> None:
        self.turn, self.name, self.log, self.error = turn, name, log, error
        self.steps, self.is_interrupted = threading.Semaphore(0), False
        self.thread: threading.Thread | None = None

    def work(self) -> Iterator[str]:
        self.thread = threading.current_thread()
        for k in range(2):
            self.log.append(f"{self.name}{k} begins")
            with self.turn.pass_on():
                self.steps.acquire(timeout=60)
            if self.is_interrupted:
                raise KeyboardInterrupt
            yield f"{self.name}{k}"
        if self.error:
            raise self.error

    def interrupt(self) -> None:
        self.is_interrupted = True
        self.steps.release(2)

    @property
    def lane(self) -> Lane[str]:
        return Lane(self.work, self.interrupt)


@pytest.fixture
def turn() -> Turn:
    return Turn()


def make_lanes(turn: Turn, names: str, log: list[str], **errors: BaseException) -> list[Waits]:
    return [Waits(turn, name, log, errors.get(name)) for name in names]


@pytest.mark.timeout(60)
def test_a_lane_goes_on_while_another_waits(turn: Turn) -> None:
    slow, quick = make_lanes(turn, "ab", [])
    quick.steps.release(2)
    with run_lanes([slow.lane, quick.lane], turn, at_once=2) as results:
        assert [next(results), next(results)] == ["b0", "b1"]
        slow.steps.release(2)
        assert list(results) == ["a0", "a1"]


def test_one_lane_at_a_time_is_done_in_order_in_this_thread(turn: Turn) -> None:
    log: list[str] = []
    lanes = make_lanes(turn, "ab", log)
    for each in lanes:
        each.steps.release(2)
    with run_lanes([each.lane for each in lanes], turn, at_once=1) as results:
        assert list(results) == ["a0", "a1", "b0", "b1"]
    assert log == ["a0 begins", "a1 begins", "b0 begins", "b1 begins"]
    assert {each.thread for each in lanes} == {threading.current_thread()}


@pytest.mark.timeout(60)
def test_no_more_lanes_run_at_once_than_asked_for(turn: Turn) -> None:
    log: list[str] = []
    first, second, third = make_lanes(turn, "abc", log)
    second.steps.release(2)
    with run_lanes([first.lane, second.lane, third.lane], turn, at_once=2) as results:
        assert [next(results), next(results)] == ["b0", "b1"]
        third.steps.release(2)
        assert [next(results), next(results)] == ["c0", "c1"]
        first.steps.release(2)
        assert list(results) == ["a0", "a1"]
    assert log.index("c0 begins") > log.index("b1 begins")


@pytest.mark.timeout(60)
def test_only_one_lane_computes_at_a_time(turn: Turn) -> None:
    computing, most = [], []

    def work() -> Iterator[int]:
        for k in range(50):
            computing.append(k)
            most.append(len(computing))
            threading.Event().wait(0.0005)
            computing.pop()
            with turn.pass_on():
                pass
            yield k

    with run_lanes([Lane(work, lambda: None) for _ in range(4)], turn, at_once=4) as results:
        assert len(list(results)) == 200
    assert set(most) == {1}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("quick", ["a", "b"])
def test_the_error_is_that_of_the_first_lane_whichever_is_quicker(turn: Turn, quick: str) -> None:
    lanes = make_lanes(turn, "abc", [], a=ValueError("a"), b=ValueError("b"))
    first, second = (lanes[0], lanes[1]) if quick == "a" else (lanes[1], lanes[0])
    first.steps.release(2)

    def run_all() -> None:
        with run_lanes([each.lane for each in lanes], turn, at_once=3) as results:
            assert [next(results), next(results)] == [f"{first.name}0", f"{first.name}1"]
            second.steps.release(2)
            list(results)

    with pytest.raises(ValueError, match="a"):
        run_all()
    assert lanes[2].is_interrupted


@pytest.mark.timeout(60)
def test_an_interrupt_ends_the_lanes_that_wait_and_starts_no_other(turn: Turn) -> None:
    log: list[str] = []
    lanes = make_lanes(turn, "abc", log)
    before = threading.active_count()

    def interrupt_after_the_first_result() -> None:
        with run_lanes([each.lane for each in lanes], turn, at_once=2) as results:
            lanes[0].steps.release()
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_after_the_first_result()
    assert threading.active_count() == before
    assert not any(line.startswith("c") for line in log)
