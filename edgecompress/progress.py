"""Progress of long work, without saying how it is shown: a verb wraps its loops in `track`, the CLI passes one that draws bars."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def track_silently(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate and show nothing."""
    return iter(iterable)
