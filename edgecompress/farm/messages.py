"""What a farm and the process of one device say to each other: a JSON line each."""

from typing import Literal

from edgecompress.records import BenchmarkResult, Record


class Settings(Record, frozen=True, kw_only=True):
    """How every job is measured; `runner`, `python`, `cpu_mask` and `cooldown_c` stand in for what a device's entry leaves open."""

    threads: int = 1
    repetitions: int = 50
    warmup_s: float = 0.5
    time_limit_s: float = 150.0
    timeout_s: float = 600.0
    loads: int = 1
    profile: bool = False
    runner: str = ""
    python: str = ""
    cpu_mask: str = ""
    cooldown_c: float | None = None


class Order(Record, frozen=True, kw_only=True):
    """prepare: connect, take the lease, cool down, say ready. Then run: measure, and give the lease back. Or rest: give it back."""

    do: Literal["prepare", "run", "rest"]
    files: tuple[str, ...] = ()


class Report(Record, frozen=True, kw_only=True):
    """state: what it waits for. failed: `kind` says whether another try may work (lost, late), the device is at fault, or the job."""

    event: Literal["state", "ready", "done", "failed"]
    text: str = ""
    kind: Literal["", "lost", "late", "device", "job"] = ""
    results: tuple[BenchmarkResult, ...] = ()
