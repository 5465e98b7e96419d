"""Work in lanes: lanes wait for other programs side by side, and take turns at computing in this process."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Turn:
    """The right to compute in this process, which one lane has at a time: torch.export and the record of a run bear no two threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Compute in this context."""
        with self._lock:
            yield

    @contextmanager
    def pass_on(self) -> Iterator[None]:
        """Let other lanes compute in this context, in which the present one waits for a program."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class Lane(NamedTuple, Generic[T]):
    """Work that is done in order.

    Attributes:
        work: Yields the results; it has the turn, and passes it on while it waits.
        interrupt: Lets the work raise KeyboardInterrupt where it waits, now and later; any thread may call it.
    """

    work: Callable[[], Iterator[T]]
    interrupt: Callable[[], None]


@contextmanager
def run_lanes(lanes: Sequence[Lane[T]], turn: Turn, *, at_once: int) -> Iterator[Iterator[T]]:
    """Yield the results of all lanes as they come, at most `at_once` lanes at a time, which start in order.

    Where a lane raises, those behind it are interrupted and those before it go on; in the end the error of the first of them is raised, so
    that it does not depend on which lane was quicker. An error in the block stops all lanes.
    """
    if min(at_once, len(lanes)) < 2:
        with turn.take(), closing(_run_in_order(lanes)) as results:
            yield results
        return
    threads = _Threads(lanes, turn, at_once)
    try:
        yield threads.run()
    except BaseException:
        threads.interrupt(0)
        raise
    finally:
        threads.join()


def _run_in_order(lanes: Sequence[Lane[T]]) -> Generator[T, None, None]:
    for lane in lanes:
        yield from lane.work()


class _Threads(Generic[T]):
    def __init__(self, lanes: Sequence[Lane[T]], turn: Turn, at_once: int) -> None:
        self._lanes, self._turn = lanes, turn
        self._waiting = deque(range(len(lanes)))
        self._results: SimpleQueue[tuple[T] | None] = SimpleQueue()  # None: a thread has ended
        self._errors: dict[int, BaseException] = {}
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(at_once, len(lanes)))]

    def run(self) -> Iterator[T]:
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running:
            result = self._results.get()
            if result is None:
                running -= 1
            else:
                yield result[0]
        if self._errors:
            raise self._errors[min(self._errors)]

    def interrupt(self, first: int) -> None:
        """Interrupt the lanes from `first` on, and start no other."""
        self._waiting.clear()
        for lane in self._lanes[first:]:
            lane.interrupt()

    def join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        with self._turn.take():
            while self._waiting:
                index = self._waiting.popleft()
                try:
                    for result in self._lanes[index].work():
                        self._results.put((result,))
                except BaseException as error:
                    self._errors[index] = error
                    self.interrupt(index + 1)
        self._results.put(None)
