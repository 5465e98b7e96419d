"""The before/after table: which artifacts may be compared, and with which.

A ratio of two times is made only inside a group: same session, device, runtime with version, runner and thread count. A ratio of two sizes,
or a difference of two accuracies, is made with the dense fp32 file of the same format, and for accuracy of the same data.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from edgecompress.devices.statistics import median, ratio
from edgecompress.records import Artifact, BenchmarkResult
from edgecompress.reporting.document import Group, Latency, Note, Row
from edgecompress.reporting.numbers import format_whole

Key = tuple[str, ...]
KEY_NAMES = ("in another session", "on another device", "under another governor", "with another runtime", "by another runner",
             "with another number of threads", "on other processors")  # fmt: skip


def percentile(values: Sequence[float], p: float) -> float:
    """Return the `p`-th percentile, linear between neighbours (as numpy's default)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * p / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def is_baseline(artifact: Artifact) -> bool:
    return artifact.model == "dense" and artifact.quant.scheme == "fp32"


def key(result: BenchmarkResult) -> Key:
    """Return what must be equal for two results to be compared, in the order of `KEY_NAMES`."""
    d = result.device
    device = "\0".join((d.url, d.serial, d.model, d.soc, d.abi, d.os, str(d.emulated)))
    return (result.session, device, d.governor, result.backend, result.runner, str(result.threads), result.cpu_mask)


def differences(a: BenchmarkResult, b: BenchmarkResult) -> tuple[str, ...]:
    """Return what differs, in words that follow "was measured"."""
    return tuple(name for name, x, y in zip(KEY_NAMES, key(a), key(b), strict=True) if x != y)


def baseline_for(artifact: Artifact, artifacts: Iterable[Artifact]) -> Artifact | None:
    """Return the dense fp32 artifact of the same format, made by the same route where there is one."""
    same = [other for other in artifacts if is_baseline(other) and other.format == artifact.format]
    return next((other for other in same if other.route == artifact.route), same[0] if same else None)


def latency(result: BenchmarkResult) -> Latency:
    """Return the statistics of a result with at least one finite sample."""
    samples = tuple(value for value in result.latency_ms if math.isfinite(value))
    return Latency(
        median_ms=median(samples),
        p10_ms=percentile(samples, 10),
        p90_ms=percentile(samples, 90),
        min_ms=min(samples),
        max_ms=max(samples),
        samples_ms=samples,
        load_ms=result.load_ms,
        first_ms=result.first_ms,
        warmups=len(result.warmup_ms),
        peak_rss_bytes=result.peak_rss_bytes,
        noisy=result.noisy,
    )


def static_row(artifact: Artifact, artifacts: tuple[Artifact, ...]) -> Row:
    """Return the row of an artifact with all that holds on any device."""
    base = baseline_for(artifact, artifacts)
    times_smaller, size_reason = None, f"no dense fp32 {artifact.format} file to compare with"
    change, top1_reason = None, "accuracy of this file was not measured"
    if base is not None:
        size_reason = "" if artifact.size_bytes else "the file is empty"
        times_smaller = base.size_bytes / artifact.size_bytes if artifact.size_bytes else None
    if artifact.top1 is not None:
        if base is None:
            top1_reason = f"no dense fp32 {artifact.format} file to compare with"
        elif base.top1 is None:
            top1_reason = f"accuracy of {base.name} was not measured"
        elif base.data != artifact.data:
            top1_reason = f"other data than {base.name}: {artifact.data or 'unnamed'}, not {base.data or 'unnamed'}"
        elif base.parity and artifact.parity and base.parity.samples != artifact.parity.samples:
            top1_reason = f"on {format_whole(artifact.parity.samples)} samples, {base.name} on {format_whole(base.parity.samples)}"
        else:
            change, top1_reason = 100 * (artifact.top1 - base.top1), ""
    return Row(
        artifact=artifact.name,
        model=artifact.model,
        format=artifact.format,
        scheme=artifact.quant.scheme,
        baseline=is_baseline(artifact),
        size_bytes=artifact.size_bytes,
        times_smaller=times_smaller,
        size_reason=size_reason,
        top1=artifact.top1,
        top1_change_points=change,
        top1_reason=top1_reason,
        data=artifact.data,
        parity=artifact.parity,
    )


def artifact_of(result: BenchmarkResult, artifacts: tuple[Artifact, ...]) -> Artifact | None:
    """Return the artifact with the measured bytes, by name where several have them; None when no file has them any more."""
    same = [artifact for artifact in artifacts if artifact.sha256 == result.artifact_sha256]
    return next((a for a in same if result.artifact in {a.name, a.path}), same[0] if same else None)


def compare(
    artifacts: tuple[Artifact, ...], results: tuple[BenchmarkResult, ...]
) -> tuple[tuple[Group, ...], tuple[Row, ...], tuple[str, ...]]:
    """Return the groups of comparable results, the artifacts nobody measured, and what had to be left out, with reasons."""
    grouped: dict[Key, list[tuple[Artifact, BenchmarkResult]]] = {}
    measured: set[int] = set()
    left_out = []
    for result in results:
        artifact = artifact_of(result, artifacts)
        if artifact is None:
            left_out.append(
                f"{result.artifact}: measured as {result.artifact_sha256[:12]}, a file this run no longer has; measure it again"
            )
        elif not any(math.isfinite(value) for value in result.latency_ms):
            left_out.append(f"{result.artifact}: its measurement on {result.device.url} holds no time; measure it again")
        else:
            measured.add(id(artifact))
            grouped.setdefault(key(result), []).append((artifact, result))
    everything = [pair for pairs in grouped.values() for pair in pairs]
    groups = tuple(group(pairs, everything, artifacts) for pairs in grouped.values())
    unmeasured = tuple(static_row(artifact, artifacts) for artifact in artifacts if id(artifact) not in measured)
    by_age = sorted(groups, key=lambda group: group.started_at, reverse=True)
    return tuple(sorted(by_age, key=preference)), unmeasured, tuple(left_out)


def newest(groups: tuple[Group, ...]) -> tuple[tuple[Group, ...], tuple[Note, ...]]:
    """Leave out each group that a newer session repeated in full: same device, runtime, threads and at least its files; say so."""
    kept, notes = [], []
    for group in groups:
        files = {row.artifact for row in group.rows}
        newer = (other for other in groups if other.started_at > group.started_at and place(other) == place(group))
        if any(files <= {row.artifact for row in other.rows} for other in newer):
            where = group.device.model or group.device.url
            text = f"An earlier session on {where} ({group.started_at}) is left out, a newer one measured the same files."
            notes.append(Note(source="bench", text=text))
        else:
            kept.append(group)
    return tuple(kept), tuple(notes)


def place(group: Group) -> tuple[str, ...]:
    """Return what tells one place of measurement from another, but for the session and what changes by itself."""
    d = group.device
    return (d.url, d.serial, str(d.emulated), group.backend, group.runner, str(group.threads), group.cpu_mask)


def group(
    pairs: list[tuple[Artifact, BenchmarkResult]], everything: list[tuple[Artifact, BenchmarkResult]], artifacts: tuple[Artifact, ...]
) -> Group:
    """Return comparable results as rows, the baseline first, then from slow to fast."""
    rows = [measured_row(pair, pairs, everything, artifacts) for pair in pairs]
    rows.sort(key=lambda row: (not row.baseline, -row.latency.median_ms if row.latency else 0.0))
    first = pairs[0][1]
    reasons = {row.speed_reason for row in rows}
    return Group(
        session=first.session,
        device=first.device,
        runner=first.runner,
        backend=first.backend,
        threads=first.threads,
        started_at=min(result.started_at for _, result in pairs),
        temperature_c=(known(min, (r.temperature_c[0] for _, r in pairs)), known(max, (r.temperature_c[1] for _, r in pairs))),
        load_average=(known(max, (r.load_average[0] for _, r in pairs)), known(max, (r.load_average[1] for _, r in pairs))),
        rows=tuple(rows),
        reason=reasons.pop() if len(reasons) == 1 else "",
        cpu_mask=first.cpu_mask,
        told=told(first),
    )


def told(result: BenchmarkResult) -> tuple[tuple[str, str], ...]:
    """Return the conditions that all results of a session share, in words; "" for what nobody told."""
    before, after = (max(values, default=None) for values in result.frequencies_mhz)
    known_both = before is not None and after is not None
    return (
        ("Processors", f"mask {result.cpu_mask}" if result.cpu_mask else ""),
        ("Fastest processor before → after", f"{before:.0f} → {after:.0f} MHz" if known_both else ""),
        ("Governor before → after", " → ".join(result.governors) if any(result.governors) else ""),
        ("Throttled", "" if result.throttled is None else "yes" if result.throttled else "no"),
        ("Processors busy with others", "" if result.busy_elsewhere is None else f"{result.busy_elsewhere:.2f}"),
        ("Loadings of each file", str(len(result.rounds)) if result.rounds else ""),
        ("Runner's SHA-256", result.runner_sha256),
    )


def measured_row(
    pair: tuple[Artifact, BenchmarkResult],
    pairs: list[tuple[Artifact, BenchmarkResult]],
    everything: list[tuple[Artifact, BenchmarkResult]],
    artifacts: tuple[Artifact, ...],
) -> Row:
    """Return the row of one result, with its speed-up against the dense fp32 result of its group or the reason for none."""
    artifact, result = pair
    found = latency(result)
    bases = [other for other in pairs if is_baseline(other[0])]
    bases.sort(key=lambda other: (other[0].format != artifact.format, other[0].route != artifact.route))
    speed_up, interval, name, reason = None, None, "", ""
    if not bases:
        reason = why_unlike(result, [r for a, r in everything if is_baseline(a)])
    else:
        base, base_result = pair if is_baseline(artifact) else bases[0]
        name = base.name
        speed_up = latency(base_result).median_ms / found.median_ms if found.median_ms > 0 else None
        reason = "" if speed_up is not None else "the clock of this device is too coarse: median 0 ms"
        if speed_up is not None and base_result is not result:
            compared = ratio(base_result, result)
            if compared.low is not None and compared.high is not None:
                speed_up, interval = compared.ratio, (compared.low, compared.high)
    return msgspec.structs.replace(
        static_row(artifact, artifacts), latency=found, speed_up=speed_up, speed_interval=interval, speed_baseline=name, speed_reason=reason
    )


def why_unlike(result: BenchmarkResult, bases: list[BenchmarkResult]) -> str:
    """Return why no dense fp32 result may stand under this one in a ratio, by the baseline that differs least."""
    if not bases:
        return "no ratio: the dense fp32 file was not measured"
    fewest = min((differences(result, base) for base in bases), key=len)
    return f"no ratio: the dense fp32 file was measured {', '.join(fewest)}"


def known(pick: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """Return `pick` of the values that are known, None without any."""
    present = [value for value in values if value is not None]
    return pick(present) if present else None


def preference(group: Group) -> tuple[bool, bool, bool, float]:
    """Order groups: with a baseline first, real before emulated, a device before this machine, then the most artifacts."""
    return (all(row.speed_up is None for row in group.rows), group.device.emulated, group.device.url.startswith("local"), -len(group.rows))
