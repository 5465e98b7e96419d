"""The conditions of a run, its measurements and its files: the part of a report that makes them repeatable."""

import math

from edgecompress.records import Artifact, FinetuneResult, QuantizeResult
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting.document import Conditions, Group
from edgecompress.reporting.numbers import format_db, format_exact, format_percent, format_seconds, format_shape, format_whole

Entries = tuple[tuple[str, str], ...]


def list_conditions(records: RunRecords, groups: tuple[Group, ...], *, created_at: str, version: str) -> tuple[Conditions, ...]:
    """Return the conditions of the run, of each group of measurements and of each file; unknown entries are left out."""
    stats, plan = records.stats, records.plan
    run = (
        ("Report written", created_at),
        ("edgecompress", version),
        ("Model", stats.model if stats else plan.model if plan else ""),
        ("Input", " · ".join(format_shape(s) for s in stats.input_shapes) if stats else ""),
        *((stats.conditions if stats else {}).items()),
        *describe_training(records.finetuned),
        *describe_calibration(records.quantized),
    )
    found = [Conditions(title="Run", entries=drop_empty(run))]
    found += [Conditions(title=make_heading(group), entries=drop_empty(describe_place(group))) for group in groups]
    found += [Conditions(title=artifact.path, entries=drop_empty(describe_file(artifact))) for artifact in records.artifacts]
    return tuple(found)


def describe_training(finetuned: FinetuneResult | None) -> Entries:
    if finetuned is None:
        return ()
    return (
        ("Training data", f"{finetuned.data}, {format_whole(finetuned.train_samples)} samples"),
        ("Evaluated on", f"{format_whole(finetuned.eval_samples)} samples{describe_sampling_error(finetuned)}"),
        ("Seed", str(finetuned.seed)),
        ("Fine-tuning took", f"{format_seconds(sum(epoch.seconds for epoch in finetuned.epochs))} s"),
    )


def describe_sampling_error(finetuned: FinetuneResult) -> str:
    """Return the half-width of the 95% confidence interval of top-1, 1.96·√(p(1 − p) / n) (normal approximation), as words.

    It holds for fractions of samples that are right, which is not known of another metric.
    """
    if finetuned.top1 is None or finetuned.eval_samples < 1:
        return ""
    width = 196 * math.sqrt(finetuned.top1 * (1 - finetuned.top1) / finetuned.eval_samples)
    return f"; a top-1 of {format_percent(finetuned.top1)} is known to ±{width:.2f} points (95%), a difference on the same samples better"


def describe_calibration(quantized: QuantizeResult | None) -> Entries:
    if quantized is None:
        return ()
    low, high = quantized.input_range
    return (
        ("Calibration data", quantized.calibration_data),
        ("Input range", f"{format_exact(low)} … {format_exact(high)}"),
    )


def describe_place(group: Group) -> Entries:
    d = group.device
    return (
        ("Device", f"{d.model or 'model not told'}{' (emulated)' if d.emulated else ''}"),
        ("Address", d.url),
        ("Serial", d.serial),
        ("Chip", d.soc),
        ("ABI", d.abi),
        ("System", d.os),
        ("Cores", str(d.cores) if d.cores is not None else ""),
        ("CPU features", " ".join(d.cpu_features)),
        ("Governor", d.governor),
        ("Runtime", group.backend),
        ("Runner", group.runner),
        ("Threads", str(group.threads)),
        ("Load before → after", format_before_after(group.load_average, "")),
        ("Temperature before → after", format_before_after(group.temperature_c, " °C")),
        *group.told,
        ("Noise", "; ".join(dict.fromkeys(why for row in group.rows if row.latency for why in row.latency.noisy))),
        ("Samples", ", ".join(f"{row.artifact} {row.latency.inferences}" for row in group.rows if row.latency)),
        ("Session", group.session),
        ("Started", group.started_at),
    )


def describe_file(artifact: Artifact) -> Entries:
    pre = artifact.preprocessing
    normalised = f"(x / 255 − {format_values(pre.mean)}) / {format_values(pre.std)}" if pre else ""
    cut = f"{f'resize {pre.resize}, ' if pre.resize else ''}{f'crop {pre.crop}, ' if pre.crop else ''}" if pre else ""
    return (
        ("File", f"{artifact.path}, {format_whole(artifact.size_bytes)} bytes"),
        ("SHA-256", artifact.sha256),
        ("Format", f"{artifact.format}{f' by {artifact.route}' if artifact.route else ''}, {artifact.quant.scheme}"),
        ("Inputs", " · ".join(f"{t.name} {format_shape(t.shape)} {t.dtype} {t.layout}".strip() for t in artifact.inputs)),
        ("Outputs", " · ".join(f"{t.name} {format_shape(t.shape)} {t.dtype}" for t in artifact.outputs)),
        ("Kinds of outputs", " · ".join(f"{spec.name} {spec.kind}".strip() for spec in artifact.kinds)),
        ("Preprocessing", f"{cut}{normalised}"),
        ("Judged on", artifact.data),
        ("Conversion checked on", f"{format_whole(artifact.parity.samples)} samples" if artifact.parity else ""),
        ("SQNR against its scheme in PyTorch", f"{format_db(artifact.simulated.sqnr_db)} dB" if artifact.simulated else ""),
        ("Toolchain", ", ".join(f"{name} {version}" for name, version in sorted(artifact.toolchain.items()))),
        ("Plan SHA-256", artifact.plan_sha256),
        ("Weights SHA-256", artifact.weights_sha256),
        ("Made", artifact.created_at),
    )


def make_heading(group: Group) -> str:
    """Return a heading with device, runtime and threads, so that groups on one device can be told apart."""
    threads = f"{group.threads} thread{'' if group.threads == 1 else 's'}"
    return f"Measured on {group.device.model or group.device.url} with {group.backend}, {threads}"


def drop_empty(entries: Entries) -> Entries:
    return tuple((name, value) for name, value in entries if value)


def format_values(values: tuple[float, ...]) -> str:
    return format_exact(values[0]) if len(set(values)) == 1 else f"({', '.join(map(format_exact, values))})"


def format_before_after(values: tuple[float | None, float | None], unit: str) -> str:
    if values == (None, None):
        return ""
    return " → ".join("not told" if value is None else f"{value:.1f}{unit}" for value in values)
