"""What a foreign runner's process printed, read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """The times of one process, each of one inference as it was printed. `warmup_ms` holds those that are known exactly."""

    backend: str
    load_ms: float
    first_ms: float
    warmup_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]


def parse_time(text: str) -> float:
    """Return a printed time as a number.

    Raises:
        ValueError: It is none that a time can be.
    """
    number = float(text)
    if not 0 <= number < 1e12:
        raise ValueError(f"{text} is no time")
    return number
