"""Statistics of measured latencies, and the one rule by which two results may be compared."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkResult, CostTable, DeviceInfo, Record
from edgecompress.records.evaluation import Evaluation

CONFIDENCE: Final = 0.99
MIN_BLOCKS: Final = 8  # With fewer loadings, all of them lie on one side by chance more often than an interval of 99% allows.
MAX_SPREAD: Final = 0.05  # MAD over median: a quiet machine stays well below.
MAX_DRIFT: Final = 0.05  # Last third over first third: a machine at a steady temperature stays well below.
MAX_BUSY_SHARE: Final = 0.25  # Others on more than a quarter of the processors also take caches and memory from the measured one.
MAX_LOAD_PER_CORE: Final = 0.5  # A one-minute load above this leaves no processor idle for long.
MAX_WARMING_C: Final = 10.0  # A device that warms by more slows down before long.
MAX_FREQUENCY_CHANGE: Final = 0.1  # Governors step by more than a tenth when they react to heat or load.
CONDITIONS: Final = {
    "session": "in another session",
    "device": "on another device",
    "kind of device": "on another kind of device",
    "governor": "under another governor",
    "runtime": "with another runtime",
    "runner": "by another runner",
    "number of threads": "with another number of threads",
    "CPU mask": "on other processors",
    "data": "on other samples",
    "metric": "by another metric",
}


class Measured(Protocol):
    """A benchmark result, or a group of results that share these conditions."""

    @property
    def session(self) -> str: ...
    @property
    def device(self) -> DeviceInfo: ...
    @property
    def backend(self) -> str: ...
    @property
    def runner(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def cpu_mask(self) -> str: ...


Comparable = Measured | Evaluation | CostTable


class Ratio(Record, frozen=True, kw_only=True):
    """Time of one file over that of the first, with the interval that holds the true ratio at `confidence`.

    Attributes:
        ratio: Estimated from neighbouring inferences, as the interval is; the ratio of medians where there is no interval.
        low, high: None where the measurement is too short for an interval; `why` then says so.
        blocks: Number of loadings of the files, the sample of the estimate.
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
        ConfigError: The results are not `comparable`.
    """
    check_comparable(fast, slow)
    return median(slow.latency_ms) / median(fast.latency_ms)


def comparable(a: Comparable, b: Comparable, *, any_session: bool = False) -> str | None:
    """Return why two results may not be compared, e.g. `in another session, with another runtime`; None when they may.

    Times may be divided only where everything that decides about them is the same: the session (all files measured interleaved in one run),
    the device (URL, serial number, model, SoC, ABI, operating system, and whether it is emulated), its governor, the runtime with its
    version, the runner, the number of threads and the CPU mask. Sessions differ in temperature and in other load, which a ratio across
    sessions would measure too.

    The other records have fewer conditions, and those that both have are asked. The metric of an `Evaluation` depends on device, runtime,
    runner, threads and samples, but not on the session or governor. A `CostTable` holds for a kind of device (model, SoC and ABI, whichever
    board), runtime, number of threads and CPU mask.

    Args:
        any_session: Ask whether the same place was measured again, where a difference of times is a spread and no speed-up.
    """
    return ", ".join(CONDITIONS[name] for name in differing_conditions(a, b, any_session=any_session)) or None


def differing_conditions(a: Comparable, b: Comparable, *, any_session: bool = False) -> dict[str, tuple[object, object]]:
    """Return each condition, a key of `CONDITIONS`, in which two results differ, with both values."""
    one, other = conditions_of(a), conditions_of(b)
    ignored = ({"session"} if any_session else set()) | ({"kind of device"} if "device" in one and "device" in other else set())
    shared = [name for name in CONDITIONS if name in one and name in other and name not in ignored]
    return {name: (one[name], other[name]) for name in shared if one[name] != other[name]}


def conditions_of(result: Comparable) -> dict[str, object]:
    """Return what a result depends on beside the measured file, by the keys of `CONDITIONS`."""
    if isinstance(result, CostTable):
        kind, runtime, mask = result.device, result.runtime, result.cpu_mask
        return {"kind of device": kind, "runtime": runtime, "number of threads": result.threads, "CPU mask": mask}
    d = result.device
    device = (d.url, d.serial, d.model, d.soc, d.abi, d.os, d.emulated)
    found = {"device": device, "runtime": result.backend, "runner": result.runner, "number of threads": result.threads}
    if isinstance(result, Evaluation):
        return {**found, "data": result.data_sha256, "metric": result.headline.name}
    more = {"session": result.session, "governor": d.governor, "CPU mask": result.cpu_mask}
    return {**found, **more, "kind of device": kind_of_device(d)}


def kind_of_device(device: DeviceInfo) -> str:
    """Return model, SoC and ABI, which boards of one kind share; of a device that tells none of them the serial number or URL."""
    soc = device.soc if device.soc != device.model else ""
    return ", ".join(filter(None, (device.model, soc, device.abi))) or device.serial or device.url


def check_comparable(result: BenchmarkResult, first: BenchmarkResult) -> None:
    """Refuse a ratio of two results that may not be compared.

    Raises:
        ConfigError: Their conditions differ.
    """
    if reason := comparable(result, first):
        raise ConfigError(f"{result.artifact}: was measured {reason} than {first.artifact}; measure both in one `edgecompress bench`")


def ratio(result: BenchmarkResult, first: BenchmarkResult) -> Ratio:
    """Return how much time `result` takes of that of `first`, below 1 when `result` is faster, with its confidence interval.

    Each loading of the files gives one ratio: the median over its rounds of one file's time over the other's beside it, so that a
    disturbance longer than a round meets both and cancels. The remaining error differs from loading to loading: where in memory a file
    lies, and which file ran first (the second of two equal files was seen 0.8% faster; the runner alternates the order). So the loadings
    are the sample. The ratio is their Hodges-Lehmann estimate, the interval Wilcoxon's signed-rank one, which asks for symmetry but for no
    normal distribution; equal files are symmetric under any load, since their names could be exchanged. Medians over all loadings with a
    bootstrap held 1 in 97% of comparisons of a file with itself; this interval holds 1 in 99% and is a third narrower.

    Raises:
        ConfigError: The results are not `comparable`, or the first takes 0 ms by a coarse clock.

    References:
        J. L. Hodges, E. L. Lehmann. Estimates of location based on rank tests. Annals of Mathematical Statistics 34(2), 1963.
        M. Hollander, D. A. Wolfe, E. Chicken. Nonparametric Statistical Methods. 3rd edition, section 3.3, 2014.
    """
    check_comparable(result, first)
    if not median(first.latency_ms):
        raise ConfigError(f"{first.artifact}: its median is 0 ms, the clock there is too coarse; compare with a slower file")
    found = median(result.latency_ms) / median(first.latency_ms)
    if result.rounds != first.rounds or {sum(first.rounds)} != {len(first.latency_ms), len(result.latency_ms)}:
        return Ratio(ratio=found, low=None, high=None, why="the runner does not tell its rounds")
    ends = list(itertools.accumulate(first.rounds, initial=0))
    spans = [(start, end) for start, end in itertools.pairwise(ends) if end > start]
    if len(spans) < MIN_BLOCKS:
        why = f"the files were loaded {len(spans)}×, {MIN_BLOCKS} are needed; use --compare and more repetitions"
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
    # Rounded down, so that the interval is never too narrow: the exact one of 8 values at 99% goes from the least to the largest.
    outside = max(0, math.floor(n * (n + 1) / 4 - z * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)))
    return means[outside], statistics.median(means), means[-1 - outside]


def find_noise(result: BenchmarkResult) -> tuple[str, ...]:
    """Return why a result should not be relied on, in words; () when nothing speaks against the result."""
    values, cores = result.latency_ms, result.device.cores or 1
    middle = median(values)
    found = []
    if middle and (spread := mad(values) / middle) > MAX_SPREAD:
        found.append(f"times spread by {spread:.0%} (MAD over median)")
    third = len(values) // 3
    if third >= 10 and middle and abs(drift := median(values[-third:]) / max(median(values[:third]), 1e-9) - 1) > MAX_DRIFT:
        found.append(f"times drifted by {drift:+.0%} from first to last third")
    if result.busy_elsewhere is not None and result.busy_elsewhere > MAX_BUSY_SHARE * cores:
        found.append(f"others kept {result.busy_elsewhere:.1f} of {cores} processors busy")
    elif result.busy_elsewhere is None and (load := result.load_average[0]) is not None and load > MAX_LOAD_PER_CORE * cores:
        found.append(f"load average {load:.1f} on {cores} processors before")
    before, after = result.temperature_c
    if before is not None and after is not None and after - before > MAX_WARMING_C:
        found.append(f"warmed from {before:.0f} to {after:.0f} °C")
    if change := _describe_frequency_change(result):
        found.append(change)
    if result.governors[0] != result.governors[1]:
        found.append(f"governor changed from {result.governors[0] or 'none'} to {result.governors[1] or 'none'}")
    if result.throttled:
        found.append("the device throttled itself")
    return tuple(found)


def _describe_frequency_change(result: BenchmarkResult) -> str:
    """Say how the frequency of the fastest processor changed, whichever one that is; "" for little."""
    before, after = (max(values, default=0.0) for values in result.frequencies_mhz)
    if before <= 0 or after <= 0 or abs(after / before - 1) <= MAX_FREQUENCY_CHANGE:
        return ""
    return f"frequency changed from {before:.0f} to {after:.0f} MHz"


def medians_of_repeats(results: Iterable[BenchmarkResult]) -> dict[str, tuple[float, ...]]:
    """Return the medians in ms, oldest first, of each file that several sessions measured in one place, by file and device."""
    groups: list[list[BenchmarkResult]] = []
    for result in results:
        same = (g for g in groups if _is_same_file(g[0], result) and comparable(g[0], result, any_session=True) is None)
        if (group := next(same, None)) is None:
            groups.append(group := [])
        group.append(result)
    found: dict[str, tuple[float, ...]] = {}
    for group in groups:
        if len({result.session for result in group}) > 1:
            first, *_ = ordered = sorted(group, key=lambda result: result.started_at)
            found[f"{first.artifact} on {first.device.model or first.device.url}"] = tuple(median(r.latency_ms) for r in ordered)
    return found


def _is_same_file(a: BenchmarkResult, b: BenchmarkResult) -> bool:
    return (a.artifact, a.artifact_sha256) == (b.artifact, b.artifact_sha256)
