"""The times that one process of a third-party runner printed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """The times of one process, each as it was printed for one inference. `warmup_ms` holds the warm-up times that are known exactly."""

    backend: str
    load_ms: float
    first_ms: float
    warmup_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]


def parse_time(text: str) -> float:
    """Return a printed time as a number.

    Raises:
        ValueError: The number is negative, infinite or absurdly large.
    """
    number = float(text)
    if not 0 <= number < 1e12:
        raise ValueError(f"{text} is no time")
    return number
