"""Devices, the options of a measurement, and its result."""

from __future__ import annotations

from typing import Annotated, Final

from edgecompress.records.base import SCHEMA, Record
from edgecompress.records.fields import Count, Limits, Option, Positive, describe_fields

FROM_INVENTORY: Final = "By default what the inventory says of the device."


class DeviceInfo(Record, frozen=True, kw_only=True):
    """A device, by its own words: a field that the device does not tell is "" or None. No text is trusted or rendered unescaped.

    Attributes:
        state: "ready" when the device can be used; with any other state, `problem` says why and what to do.
        name, labels: From the inventory; "" and () for a device that is not in the inventory.
    """

    url: str
    serial: str
    model: str = ""
    soc: str = ""
    abi: str = ""
    os: str = ""
    governor: str = ""
    cpu_features: tuple[str, ...] = ()
    cores: int | None = None
    temperature_c: float | None = None
    free_bytes: int | None = None
    state: str = "ready"
    problem: str = ""
    emulated: bool = False
    name: str = ""
    labels: tuple[str, ...] = ()


Threads = Annotated[Count, Option("CPU threads of a measured run")]
Repetitions = Annotated[Count, Option("Timed inferences of each artifact", "Fewer are made when the time limit is reached.")]
RunTimeout = Annotated[Positive, Option("Seconds an artifact may take before its run is stopped on the device", rare=True)]
DevicePython = Annotated[str, Option("Interpreter on the device that has the runtime", FROM_INVENTORY, metavar="PATH", rare=True)]
DeviceRunner = Annotated[
    str,
    Option("Program for a device without Python", f"It obeys the runner's protocol. {FROM_INVENTORY}", metavar="FILE"),
]


class BenchmarkOptions(Record, frozen=True, kw_only=True):
    threads: Threads = 1
    repetitions: Repetitions = 100
    warmup_s: Annotated[
        float,
        Limits(at_least=0),
        Option("Seconds of warm-up, at least one inference", flag="--warmup"),
    ] = 0.5
    time_limit_s: Annotated[Positive, Option("Seconds after which no further inference is timed", rare=True)] = 150.0
    timeout_s: RunTimeout = 600.0
    python: DevicePython = ""
    runner: DeviceRunner = ""
    cpu_mask: Annotated[str, Option("Processors to run on, e.g. f0", FROM_INVENTORY, usual="all", metavar="HEX")] = ""
    cooldown_c: Annotated[float | None, Option("First wait until the device is this cool, in °C", FROM_INVENTORY)] = None
    profile: Annotated[bool, Option("Also measure times per op", "Not every runtime tells them.")] = False
    compare: Annotated[bool, Option("Also give intervals of the ratios to the first file", "Each artifact is loaded several times.")] = (
        False
    )


BenchmarkOptions.__doc__ = describe_fields(BenchmarkOptions, "How artifacts are measured.")
BENCHMARK_DEFAULTS: Final = BenchmarkOptions()


class OpTime(Record, frozen=True, kw_only=True):
    """Time per inference of all calls of one op, as the runtime names the op."""

    name: str
    calls: float
    ms: float


class BenchmarkResult(Record, frozen=True, kw_only=True):
    """Latencies of one artifact on one device: raw values and the conditions; statistics are computed when needed.

    Attributes:
        session: Shared by all artifacts that were measured interleaved in one run; see `statistics.comparable`.
        backend: Runtime and version, e.g. `ai-edge-litert 2.3.0`.
        latency_ms: Timed inferences, in order: every one, or of very many a sample that is spread evenly over them.
        latency_count, warmup_count: How many inferences were timed, and before them for warm-up; 0 in records of older versions.
        rounds: Number of rounds in each loading of the files that `latency_ms` holds; a round is one inference of each file.
        load_average: One-minute load of the device (before, after).
        temperature_c, frequencies_mhz, governors: Temperature of the device, frequency and governor of its processors (before, after the
            timed inferences).
        throttled: Whether the device slowed down to save itself; None when the device does not tell.
        busy_elsewhere: Average number of processors that other processes kept busy.
        cpu_mask: Hexadecimal mask of the processors of the run; "" for all.
        profile: Times per op, measured apart.
        noisy: Why the times should not be relied on.
        peak_rss_bytes: Peak memory of the runner's process, which all artifacts of one session share.
        notes: Deviations of the runner from the file's settings, e.g. another quantized engine.
    """

    schema: int = SCHEMA
    session: str
    artifact: str
    artifact_sha256: str
    size_bytes: int
    device: DeviceInfo
    runner: str
    backend: str
    threads: int
    load_ms: float
    first_ms: float
    warmup_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]
    peak_rss_bytes: int
    started_at: str
    temperature_c: tuple[float | None, float | None] = (None, None)
    load_average: tuple[float | None, float | None] = (None, None)
    rounds: tuple[int, ...] = ()
    latency_count: int = 0
    warmup_count: int = 0
    runner_sha256: str = ""
    cpu_mask: str = ""
    frequencies_mhz: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    governors: tuple[str, str] = ("", "")
    throttled: bool | None = None
    busy_elsewhere: float | None = None
    profile: tuple[OpTime, ...] = ()
    noisy: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
