"""Statistics of measured latencies, computed when asked; unlike things are never compared."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkResult, Record

CONFIDENCE: Final = 0.99
FEWEST_BLOCKS: Final = 8  # loadings: all of fewer lie on one side by chance more often than an interval of 99% allows
LARGEST_SPREAD: Final = 0.05  # MAD over median; a quiet machine stays well below
LARGEST_DRIFT: Final = 0.05
LARGEST_BUSY: Final = 0.25  # of all processors, by others
LARGEST_LOAD: Final = 0.5  # runnable processes for each processor, before
LARGEST_WARMING_C: Final = 10.0
LARGEST_FREQUENCY_CHANGE: Final = 0.1


class Ratio(Record, frozen=True, kw_only=True):
    """Time of one file over that of the first, with the interval that holds the true ratio at `confidence`.

    Attributes:
        ratio: Of what stood beside each other, as the interval is; without one, of the medians.
        low, high: None where the measurement is too short to say; then the reason stands in `why`.
        blocks: How many loadings of the files it rests on.
    """

    ratio: float
    low: float | None
    high: float | None
    confidence: float = CONFIDENCE
    blocks: int = 0
    why: str = ""


def median(values: Sequence[float]) -> float:
    """Return the median.

    Raises:
        ConfigError: No values.
    """
    if not values:
        raise ConfigError("median of nothing: no latency was measured; run `edgecompress bench` again")
    return statistics.median(values)


def mad(values: Sequence[float]) -> float:
    """Return the median absolute deviation from the median, in the unit of the values."""
    middle = median(values)
    return median([abs(value - middle) for value in values])


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
        "CPU mask": (a.cpu_mask or "none", b.cpu_mask or "none"),
        "session": (a.session, b.session),
    }
    return next((f"another {name}, {one} and {other}" for name, (one, other) in facts.items() if one != other), None)


def ratio(result: BenchmarkResult, first: BenchmarkResult) -> Ratio:
    """Return how much time `result` takes of that of `first`, below 1 when `result` is faster, with its confidence interval.

    Each loading of the files gives one ratio: the median over its rounds of one file's time over the other's beside it, so that a
    disturbance longer than a round meets both and cancels. What is left differs from loading to loading: where in memory a file lies, and
    which one ran first (the second of two equal files was seen 0.8% faster); the runner alternates that. So the loadings are the sample.
    The ratio is their Hodges-Lehmann estimate, the interval Wilcoxon's signed-rank one. It asks for symmetry, which equal files have under
    any load since their names could be exchanged, but not for a normal or the same distribution of each. Medians over all loadings with a
    bootstrap, as tried before, held 1 in 97% of comparisons of a file with itself; this holds it in 99% and is a third narrower.

    Raises:
        ConfigError: They were not measured interleaved in one run with the same device, runtime and threads.

    References:
        J. L. Hodges, E. L. Lehmann. Estimates of location based on rank tests. Annals of Mathematical Statistics 34(2), 1963.
        M. Hollander, D. A. Wolfe, E. Chicken. Nonparametric Statistical Methods. 3rd edition, section 3.3, 2014.
    """
    if reason := unlike(result, first):
        raise ConfigError(f"{first.artifact} and {result.artifact}: {reason}; measure both in one `edgecompress bench`")
    if not median(first.latency_ms):
        raise ConfigError(f"{first.artifact}: its median is 0 ms, the clock there is too coarse; compare with a slower file")
    found = median(result.latency_ms) / median(first.latency_ms)
    if result.rounds != first.rounds or {sum(first.rounds)} != {len(first.latency_ms), len(result.latency_ms)}:
        return Ratio(ratio=found, low=None, high=None, why="the runner does not tell its rounds")
    ends = list(itertools.accumulate(first.rounds, initial=0))
    spans = [(start, end) for start, end in itertools.pairwise(ends) if end > start]
    if len(spans) < FEWEST_BLOCKS:
        why = f"the files were loaded {len(spans)}×, {FEWEST_BLOCKS} are needed; use --compare and more repetitions"
        return Ratio(ratio=found, low=None, high=None, blocks=len(spans), why=why)
    if min(*result.latency_ms, *first.latency_ms) <= 0:
        return Ratio(ratio=found, low=None, high=None, blocks=len(spans), why="the clock there is too coarse for single inferences")
    logs = [math.log(one / other) for one, other in zip(result.latency_ms, first.latency_ms, strict=True)]
    low, middle, high = _signed_rank([median(logs[start:end]) for start, end in spans])
    return Ratio(ratio=math.exp(middle), low=math.exp(low), high=math.exp(high), blocks=len(spans))


def _signed_rank(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the pseudomedian of `values` between the ends of its interval: the median and two order statistics of all pairs' means."""
    means = sorted((one + other) / 2 for one, other in itertools.combinations_with_replacement(values, 2))
    n = len(values)
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    # Rounded down, so that at 8 values, whose exact interval at 99% goes from the least to the largest, and beyond it is never too narrow.
    outside = max(0, math.floor(n * (n + 1) / 4 - z * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)))
    return means[outside], statistics.median(means), means[-1 - outside]


def noise(result: BenchmarkResult) -> tuple[str, ...]:
    """Return why a result should not be relied on, in words; () when nothing speaks against it."""
    values, cores = result.latency_ms, result.device.cores or 1
    middle = median(values)
    found = []
    if middle and (spread := mad(values) / middle) > LARGEST_SPREAD:
        found.append(f"times spread by {spread:.0%} (MAD over median)")
    third = len(values) // 3
    if third >= 10 and middle and abs(drift := median(values[-third:]) / max(median(values[:third]), 1e-9) - 1) > LARGEST_DRIFT:
        found.append(f"times drifted by {drift:+.0%} from first to last third")
    if result.busy_elsewhere is not None and result.busy_elsewhere > LARGEST_BUSY * cores:
        found.append(f"others kept {result.busy_elsewhere:.1f} of {cores} processors busy")
    elif result.busy_elsewhere is None and (load := result.load_average[0]) is not None and load > LARGEST_LOAD * cores:
        found.append(f"load average {load:.1f} on {cores} processors before")
    before, after = result.temperature_c
    if before is not None and after is not None and after - before > LARGEST_WARMING_C:
        found.append(f"warmed from {before:.0f} to {after:.0f} °C")
    if change := _frequency_change(result):
        found.append(change)
    if result.governors[0] != result.governors[1]:
        found.append(f"governor changed from {result.governors[0] or 'none'} to {result.governors[1] or 'none'}")
    if result.throttled:
        found.append("the device throttled itself")
    return tuple(found)


def _frequency_change(result: BenchmarkResult) -> str:
    """Compare the fastest processor before and after: which one is fast may change by itself."""
    before, after = (max(values, default=0.0) for values in result.frequencies_mhz)
    if before <= 0 or after <= 0 or abs(after / before - 1) <= LARGEST_FREQUENCY_CHANGE:
        return ""
    return f"frequency changed from {before:.0f} to {after:.0f} MHz"


def repeats(results: Iterable[BenchmarkResult]) -> dict[str, tuple[float, ...]]:
    """Return file → medians in ms of its sessions, oldest first, for files measured more than once under the same conditions."""
    found: defaultdict[tuple[str, ...], list[BenchmarkResult]] = defaultdict(list)
    for result in results:
        d = result.device
        place = (d.url, d.serial, result.backend, result.runner, str(result.threads), result.cpu_mask)
        found[result.artifact, result.artifact_sha256, *place].append(result)
    made: dict[str, tuple[float, ...]] = {}
    for (name, *_), same in found.items():
        if len({result.session for result in same}) > 1:
            ordered = sorted(same, key=lambda result: result.started_at)
            made[f"{name} on {ordered[0].device.model or ordered[0].device.url}"] = tuple(median(r.latency_ms) for r in ordered)
    return made
