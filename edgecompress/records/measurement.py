"""Where something ran and what was measured there."""

from __future__ import annotations

from edgecompress.records.base import SCHEMA, Record


class DeviceInfo(Record, frozen=True, kw_only=True):
    """Where something ran. What a device does not tell is "" or None; nothing in it is trusted or rendered unescaped.

    Attributes:
        state: "ready" when it can be used; anything else comes with the `problem` and what to do about it.
        name: In the inventory, as are the `labels`; "" when it does not stand there or was not asked.
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


class Measuring(Record, frozen=True, kw_only=True):
    """How artifacts are measured. What is "" or None here is taken from the inventory's entry of the device, where there is one.

    Attributes:
        repetitions: Timed inferences of each artifact, fewer when `time_limit_s` is reached.
        warmup_s: At least one inference and this long, after the first, kept apart from the timed ones.
        timeout_s: After this the run is killed on the device.
        python: The interpreter there that has the runtime.
        runner: Path of an executable for the device that obeys the runner's protocol, in place of Python and our runner.
        cpu_mask: Hexadecimal, of the processors to run on; "" for all.
        cooldown_c: First wait until the hottest zone of the device is at or below this.
        profile: Also measure times per op, after the others, where the runtime tells them.
        compare: Load the artifacts anew several times, so that `statistics.ratio` can tell the interval of their ratios.
    """

    threads: int = 1
    repetitions: int = 50
    warmup_s: float = 0.5
    time_limit_s: float = 150.0
    timeout_s: float = 600.0
    python: str = ""
    runner: str = ""
    cpu_mask: str = ""
    cooldown_c: float | None = None
    profile: bool = False
    compare: bool = False


class OpTime(Record, frozen=True, kw_only=True):
    """What the calls of one op took of one inference, as the runtime names it."""

    name: str
    calls: float
    ms: float


class BenchmarkResult(Record, frozen=True, kw_only=True):
    """One artifact on one device: every raw value and the conditions. Statistics are computed when asked.

    Attributes:
        session: The same for all artifacts that were measured interleaved in one run; only those may be compared by ratio.
        backend: Runtime and version, e.g. `ai-edge-litert 2.3.0`.
        latency_ms: Every timed inference in order.
        rounds: How many of them, in order, belong to each loading of the file; the rounds of a session hold one inference of each file.
        load_average: One-minute load of the device (before, after).
        frequencies_mhz: Of every processor (before, after the timed inferences), as `temperature_c` and `governors`.
        throttled: The device slowed down to save itself; None when it does not tell.
        busy_elsewhere: Processors that others kept busy meanwhile, on average.
        cpu_mask: Hexadecimal, of the processors the run was kept on; "" for all.
        profile: Times per op, measured apart. `noisy`: why the times should not be relied on.
        peak_rss_bytes: Of the runner's process, which all artifacts of one session share.
        notes: What the runner did differently from what the file asks for, e.g. another quantized engine.
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
    runner_sha256: str = ""
    cpu_mask: str = ""
    frequencies_mhz: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    governors: tuple[str, str] = ("", "")
    throttled: bool | None = None
    busy_elsewhere: float | None = None
    profile: tuple[OpTime, ...] = ()
    noisy: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
