"""Statistics of measured latencies, computed when asked; unlike things are never compared."""

import statistics
from collections.abc import Sequence

from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkResult


def median(values: Sequence[float]) -> float:
    """Return the median.

    Raises:
        ConfigError: No values.
    """
    if not values:
        raise ConfigError("median of nothing: no latency was measured; run `edgecompress bench` again")
    return statistics.median(values)


def speed_up(slow: BenchmarkResult, fast: BenchmarkResult) -> float:
    """Return median latency of `slow` over that of `fast`: above 1 when `fast` is faster.

    Raises:
        ConfigError: They were not measured interleaved in one run with the same device, runtime and threads.
    """
    if reason := unlike(slow, fast):
        raise ConfigError(f"{slow.artifact} and {fast.artifact}: {reason}; measure both in one `edgecompress bench`")
    return median(slow.latency_ms) / median(fast.latency_ms)


def unlike(a: BenchmarkResult, b: BenchmarkResult) -> str | None:
    """Return why two results may not be compared by ratio, None when they may."""
    facts = {
        "device": (a.device.url + a.device.serial, b.device.url + b.device.serial),
        "runtime": (a.backend, b.backend),
        "threads": (a.threads, b.threads),
        "session": (a.session, b.session),
    }
    return next((f"another {name}, {one} and {other}" for name, (one, other) in facts.items() if one != other), None)
