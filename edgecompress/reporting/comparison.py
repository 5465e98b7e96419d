"""The before/after table: results in groups that may be compared, each beside the dense fp32 file.

A ratio of two times is made only inside a group, whose results are `comparable`. A ratio of two sizes, or a change of a metric,
is made with the dense fp32 file of the same format, and for a metric on the same data.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from edgecompress.devices.statistics import comparable, differing_conditions, median, ratio
from edgecompress.records import Artifact, BenchmarkResult
from edgecompress.records.metrics import MetricSpec, metric_loss
from edgecompress.reporting.document import ArtifactRow, Group, Latency, Note
from edgecompress.reporting.numbers import describe_change, format_whole
from edgecompress.reporting.quality import find_metric, metric_values
from edgecompress.targets import FLOAT32, SCHEMES

Pair = tuple[Artifact, BenchmarkResult]


def percentile(values: Sequence[float], p: float) -> float:
    """Return the `p`-th percentile, linear between neighbours (as numpy's default)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * p / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def is_baseline(artifact: Artifact) -> bool:
    """Whether an artifact is a dense fp32 file, which others are compared with."""
    return artifact.model == "dense" and artifact.quant.scheme == FLOAT32


def is_dense_int8(artifact: Artifact) -> bool:
    """Whether an artifact is the dense network in int8, which shows how much of the gain quantization alone gives."""
    return artifact.model == "dense" and SCHEMES[artifact.quant.scheme].is_int8


def find_baseline(artifact: Artifact, artifacts: Iterable[Artifact]) -> Artifact | None:
    """Return the dense fp32 artifact of the same format, made by the same route where there is one."""
    same = [other for other in artifacts if is_baseline(other) and other.format == artifact.format]
    return next((other for other in same if other.route == artifact.route), same[0] if same else None)


def summarize_latency(result: BenchmarkResult) -> Latency:
    """Return the statistics of a result that has at least one finite sample."""
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
        warmups=result.warmup_count or len(result.warmup_ms),
        inferences=max(result.latency_count, len(samples)),
        peak_rss_bytes=result.peak_rss_bytes,
        noisy=result.noisy,
    )


def make_unmeasured_row(artifact: Artifact, artifacts: tuple[Artifact, ...]) -> ArtifactRow:
    """Return the row of an artifact with the figures that hold on any device: size, metric and both proofs."""
    base, spec = find_baseline(artifact, artifacts), find_metric(artifacts)
    times_smaller, size_reason = None, f"no dense fp32 {artifact.format} file to compare with"
    if base is not None:
        size_reason = "" if artifact.size_bytes else "the file is empty"
        times_smaller = base.size_bytes / artifact.size_bytes if artifact.size_bytes else None
    values, dense_values = metric_values(artifact), metric_values(base) if base else {}
    reason = explain_missing_change(artifact, base, spec) if spec else "there is no metric"
    change = None
    if spec and not reason:  # of a dense file itself too: no change
        change = -metric_loss(spec, dense_values, values)
    return ArtifactRow(
        artifact=artifact.path,
        model=artifact.model,
        format=artifact.format,
        scheme=artifact.quant.scheme,
        baseline=is_baseline(artifact),
        size_bytes=artifact.size_bytes,
        times_smaller=times_smaller,
        size_reason=size_reason,
        metric=spec,
        value=values.get(spec.name) if spec else None,
        dense_value=dense_values.get(spec.name) if spec and not reason else None,
        change=change,
        metric_reason=reason,
        data=artifact.data,
        parity=artifact.parity,
        fidelity=artifact.fidelity,
    )


def explain_missing_change(artifact: Artifact, base: Artifact | None, spec: MetricSpec) -> str:
    """Return why the metric of a file may not be compared with that of the dense fp32 file; "" where it may."""
    if spec.name not in metric_values(artifact):
        return f"{spec.name} of this file was not measured"
    if base is None:
        return f"no dense fp32 {artifact.format} file to compare with"
    if spec.name not in metric_values(base):
        return f"{spec.name} of {base.path} was not measured"
    if base.data != artifact.data:
        return f"other data than {base.path}: {artifact.data or 'unnamed'}, not {base.data or 'unnamed'}"
    if base.parity and artifact.parity and base.parity.samples != artifact.parity.samples:
        return f"on {format_whole(artifact.parity.samples)} samples, {base.path} on {format_whole(base.parity.samples)}"
    return ""


def find_artifact(result: BenchmarkResult, artifacts: tuple[Artifact, ...]) -> Artifact | None:
    """Return the artifact whose bytes were measured, by name where several files are equal; None when the file was replaced."""
    same = [artifact for artifact in artifacts if artifact.sha256 == result.artifact_sha256]
    return next((a for a in same if result.artifact in {a.name, a.path}), same[0] if same else None)


def group_results(
    artifacts: tuple[Artifact, ...], results: tuple[BenchmarkResult, ...]
) -> tuple[tuple[Group, ...], tuple[ArtifactRow, ...], tuple[str, ...]]:
    """Return the groups of comparable results, the artifacts nobody measured, and the results that were left out, with reasons."""
    grouped: list[list[Pair]] = []
    measured: set[int] = set()
    left_out = []
    for result in results:
        artifact = find_artifact(result, artifacts)
        if artifact is None:
            digest = result.artifact_sha256[:12]
            left_out.append(f"{result.artifact}: measured as {digest}, a file this run no longer has; measure it again")
        elif not any(math.isfinite(value) for value in result.latency_ms):
            left_out.append(f"{result.artifact}: its measurement on {result.device.url} holds no time; measure it again")
        else:
            measured.add(id(artifact))
            if (pairs := next((pairs for pairs in grouped if comparable(pairs[0][1], result) is None), None)) is None:
                grouped.append(pairs := [])
            pairs.append((artifact, result))
    everything = [pair for pairs in grouped for pair in pairs]
    groups = [make_group(pairs, everything, artifacts) for pairs in grouped]
    unmeasured = tuple(make_unmeasured_row(artifact, artifacts) for artifact in artifacts if id(artifact) not in measured)
    by_age = sorted(groups, key=lambda group: group.started_at, reverse=True)
    return tuple(sorted(by_age, key=rank_group)), unmeasured, tuple(left_out)


def drop_repeated_groups(groups: tuple[Group, ...]) -> tuple[tuple[Group, ...], tuple[Note, ...]]:
    """Leave out each group whose files a newer session measured again in the same place; return the others, and a note for each."""
    kept, notes = [], []
    for group in groups:
        files = {row.artifact for row in group.rows}
        newer = [g for g in groups if g.started_at > group.started_at and comparable(g, group, any_session=True) is None]
        if any(files <= {row.artifact for row in other.rows} for other in newer):
            where = group.device.model or group.device.url
            text = f"An earlier session on {where} ({group.started_at}) is left out, a newer one measured the same files."
            notes.append(Note(source="bench", text=text))
        else:
            kept.append(group)
    return tuple(kept), tuple(notes)


def make_group(pairs: list[Pair], everything: list[Pair], artifacts: tuple[Artifact, ...]) -> Group:
    """Return comparable results as rows, the baseline first, then from slow to fast."""
    rows = [make_measured_row(pair, pairs, everything, artifacts) for pair in pairs]
    rows.sort(key=lambda row: (not row.baseline, -row.latency.median_ms if row.latency else 0.0))
    first = pairs[0][1]
    reasons = {row.speed_reason for row in rows}
    temperatures, loads = [r.temperature_c for _, r in pairs], [r.load_average for _, r in pairs]
    return Group(
        session=first.session,
        device=first.device,
        runner=first.runner,
        backend=first.backend,
        threads=first.threads,
        started_at=min(result.started_at for _, result in pairs),
        temperature_c=(pick_known(min, (before for before, _ in temperatures)), pick_known(max, (after for _, after in temperatures))),
        load_average=(pick_known(max, (before for before, _ in loads)), pick_known(max, (after for _, after in loads))),
        rows=tuple(rows),
        reason=reasons.pop() if len(reasons) == 1 else "",
        cpu_mask=first.cpu_mask,
        told=describe_session(first),
    )


def describe_session(result: BenchmarkResult) -> tuple[tuple[str, str], ...]:
    """Return the conditions that all results of a session share, in words; "" for those that the device did not tell."""
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


def make_measured_row(pair: Pair, pairs: list[Pair], everything: list[Pair], artifacts: tuple[Artifact, ...]) -> ArtifactRow:
    """Return the row of one result, with its speed-up against the dense results of its group or the reason for none."""
    artifact, result = pair
    base = pair if is_baseline(artifact) else find_dense_pair(artifact, pairs, is_baseline)
    int8 = None if artifact.model == "dense" else find_dense_pair(artifact, pairs, is_dense_int8)
    speed_up, interval = compare_speed(base[1], result) if base else (None, None)
    int8_speed_up, int8_interval = compare_speed(int8[1], result) if int8 else (None, None)
    reason = ""
    if base is None:
        reason = explain_missing_ratio(result, [r for a, r in everything if is_baseline(a)])
    elif speed_up is None:
        reason = "the clock of this device is too coarse: median 0 ms"
    parents = [(int8, int8_speed_up)] if int8 and int8[0].quant.scheme == artifact.quant.scheme else [(base, speed_up)]
    return msgspec.structs.replace(
        make_unmeasured_row(artifact, artifacts),
        latency=summarize_latency(result),
        speed_up=speed_up,
        speed_interval=interval,
        speed_baseline=base[0].path if base else "",
        speed_reason=reason,
        int8_speed_up=int8_speed_up,
        int8_interval=int8_interval,
        int8_baseline=int8[0].path if int8 else "",
        slower_than=next((parent[0].path for parent, factor in parents if parent and is_slower(factor)), ""),
    )


def find_dense_pair(artifact: Artifact, pairs: list[Pair], is_wanted: Callable[[Artifact], bool]) -> Pair | None:
    """Return a dense file of a session, that of the same format and route before others."""
    found = [pair for pair in pairs if is_wanted(pair[0])]
    return min(found, key=lambda other: (other[0].format != artifact.format, other[0].route != artifact.route), default=None)


def compare_speed(slow: BenchmarkResult, fast: BenchmarkResult) -> tuple[float | None, tuple[float, float] | None]:
    """Return the time of `slow` over that of `fast`, with its 99% interval where there is one; None where the clock shows no time."""
    before, after = summarize_latency(slow).median_ms, summarize_latency(fast).median_ms
    if after <= 0:
        return None, None
    if fast is not slow:
        compared = ratio(slow, fast)
        if compared.low is not None and compared.high is not None:
            return compared.ratio, (compared.low, compared.high)
    return before / after, None


def is_slower(factor: float | None) -> bool:
    """Whether a speed-up is called slower in words; one that rounds to 1.0× is within what clocks show."""
    return bool(factor) and describe_change(factor or 1.0, "faster", "slower")[1] == "slower"


def is_faster(factor: float | None, interval: tuple[float, float] | None) -> bool:
    """Whether a speed-up is called faster in words, and its interval, where there is one, holds no 1."""
    return bool(factor) and describe_change(factor or 1.0, "faster", "slower")[1] == "faster" and (interval is None or interval[0] > 1)


def explain_missing_ratio(result: BenchmarkResult, bases: list[BenchmarkResult]) -> str:
    """Return why no dense fp32 result may stand under this one in a ratio, by the baseline that differs least."""
    if not bases:
        return "no ratio: the dense fp32 file was not measured"
    nearest = min(bases, key=lambda base: len(differing_conditions(result, base)))
    return f"no ratio: the dense fp32 file was measured {comparable(result, nearest)}"


def pick_known(pick: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """Return the least or greatest, by `pick`, of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return pick(present) if present else None


def rank_group(group: Group) -> tuple[bool, bool, bool, float]:
    """Return a sort key: groups with a baseline first, then real devices, then devices other than this machine, then large groups."""
    return (all(row.speed_up is None for row in group.rows), group.device.emulated, group.device.url.startswith("local"), -len(group.rows))
