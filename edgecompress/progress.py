"""Progress of long work: a function wraps its loops in `track`, and the command line passes a `track` that draws bars."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """A wrapper of an iterable that shows how far a loop has come."""

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def track_silently(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Return the iterator of `iterable` and show nothing."""
    return iter(iterable)
