"""Run labelled inputs through artifacts on a device: the metric there, and whether the outputs are those of this machine."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgecompress import data as datasets
from edgecompress.data.content import digest_value
from edgecompress.data.metrics import Metric, describe_metric, make_metric, measure_metric
from edgecompress.devices import Device, open_device
from edgecompress.devices.inventory import apply_entry, resolve_device
from edgecompress.devices.labelled_data import INDEX_DTYPES, Data, EvaluationJob, fetch_batch, prepare_job
from edgecompress.devices.layouts import to_artifact_layout, to_model_layout
from edgecompress.devices.runners.execute import InputArray, check_runner_file, compute_outputs
from edgecompress.devices.runners.protocol import RunnerReply
from edgecompress.devices.scores import Array, judge_outputs, rank_labels
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError, DeviceError, ParityError
from edgecompress.network import batches
from edgecompress.network.parity import measure_parity
from edgecompress.network.reference import REFERENCE, read_reference
from edgecompress.progress import Track, track_silently
from edgecompress.records import DeviceInfo, Parity
from edgecompress.records.evaluation import EVALUATION_DEFAULTS, Evaluation, EvaluationOptions
from edgecompress.records.fields import check_values

MAX_TRANSFER_BYTES: Final = 16 << 20
MAX_TRANSFER_SAMPLES: Final = 1000
MIN_TOP5_CLASSES: Final = 10  # among fewer classes nearly every label is among the first five
REMEDY: Final = "install the same runtime there, or allow it with --tolerance"


@dataclass(slots=True)
class _Outputs:
    """The outputs of the device and of this machine, with the labels, one entry for each transfer, and the targets, one for each sample."""

    there: list[tuple[Array, ...]] = field(default_factory=list)
    here: list[tuple[Array, ...]] = field(default_factory=list)
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    replies: list[RunnerReply] = field(default_factory=list)
    host_replies: list[RunnerReply] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)


def evaluate(
    artifacts: Sequence[Path],
    *,
    data: Data = None,
    device: str = "local://",
    samples: int = EVALUATION_DEFAULTS.samples,
    batch: int | None = None,
    tolerance: float | None = None,
    threads: int = EVALUATION_DEFAULTS.threads,
    timeout_s: float = EVALUATION_DEFAULTS.timeout_s,
    python: str | None = None,
    runner: Path | None = None,
    inventory: Path | None = None,
    metric: Any = None,
    on_result: Callable[[Evaluation], object] = lambda _: None,
    track: Track = track_silently,
) -> tuple[Evaluation, ...]:
    """Score artifacts on a device: a metric there, and the difference of the outputs from those of the same files on this machine.

    Args:
        data: A Dataset of `(input, target)`, a path to data, or a recipe (its `eval_data()`); None takes the data of the run in which an
            artifact lies. Data of a path are preprocessed as the manifest says.
        metric: `metric(outputs, targets) -> dict[str, float]`, or a torchmetrics `Metric`, in place of the recipe's.
        inventory: The file in which the name of `device` is looked up, in place of the usual one.
        on_result: Called with each record as soon as it is complete, also with one that will raise ParityError. The other arguments are the
            fields of `EvaluationOptions`, which documents them.

    Raises:
        ConfigError: An artifact without a manifest, data without targets, or data or a metric that do not fit it.
        DeviceError: The device or the run on it failed.
        ParityError: An artifact computes something else there than here; raised when all have been evaluated.
    """
    options = EvaluationOptions(
        data=str(data) if isinstance(data, str | Path) else None,
        samples=samples,
        batch=batch,
        tolerance=tolerance,
        threads=threads,
        timeout_s=timeout_s,
        python=python or "",
        runner=str(runner or ""),
    )
    dataset = data if not isinstance(data, str | Path) else None
    made = None if metric is None else make_metric(metric)
    return evaluate_artifacts(
        artifacts, options, data=dataset, device=device, inventory=inventory, metric=made, on_result=on_result, track=track
    )


def evaluate_artifacts(
    artifacts: Sequence[Path],
    options: EvaluationOptions,
    *,
    device: str,
    data: Data = None,
    inventory: Path | None = None,
    metric: Metric | None = None,
    on_result: Callable[[Evaluation], object] = lambda _: None,
    track: Track = track_silently,
) -> tuple[Evaluation, ...]:
    """Score artifacts on a device as `evaluate` does, with the options in one record; `data` may replace the path or recipe in it."""
    check_scoring(artifacts, options)
    entry = resolve_device(device, inventory)
    jobs = [prepare_job(Path(path), options.data if data is None else data, options.samples, metric=metric) for path in artifacts]
    with open_device(entry.url) as there:
        return require_host_parity(evaluate_on_device(there, jobs, apply_entry(options, entry), on_result=on_result, track=track))


def check_scoring(artifacts: Sequence[Path], options: EvaluationOptions) -> None:
    """Refuse artifacts and options that cannot be evaluated before any device is opened.

    Raises:
        ConfigError: No artifacts, a value out of its range, or no such runner.
    """
    if not artifacts:
        raise ConfigError("evaluate: no artifacts; name files or a run folder with artifacts/")
    check_values(options)
    check_runner_file(options.runner)


def evaluate_on_device(
    there: Device,
    jobs: Sequence[EvaluationJob],
    options: EvaluationOptions,
    *,
    on_result: Callable[[Evaluation], object] = lambda _: None,
    track: Track = track_silently,
) -> tuple[Evaluation, ...]:
    """Evaluate artifacts with their data on an open device and on this machine; differences are recorded, not raised."""
    records: list[Evaluation] = []
    with open_device("local://") as here:
        info = there.info()
        for job in jobs:
            records.append(_evaluate_job(job, there, here, info, options, track))
            on_result(records[-1])
    return tuple(records)


def require_host_parity(records: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
    """Return the records when the outputs of all artifacts are those of this machine.

    Raises:
        ParityError: The outputs of an artifact are not; has the problem of the first one.
    """
    if problems := [record.problem for record in records if record.problem]:
        raise ParityError(problems[0])
    return records


def _evaluate_job(
    job: EvaluationJob, there: Device, here: Device, info: DeviceInfo, options: EvaluationOptions, track: Track
) -> Evaluation:
    """Run all inputs of a job on the device and on this machine, and make the record of the comparison."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    sample_bytes = sum(x.numel() * x.element_size() for x in job.example)
    size = options.batch or max(1, min(MAX_TRANSFER_SAMPLES, MAX_TRANSFER_BYTES // sample_bytes))
    starts = range(0, len(job.indices), size)
    answers = _Outputs()
    for start in track(starts, f"{job.path.name} on {there.url}", total=len(starts)):
        _run_chunk(job, job.indices[start : start + size], answers, there, here, options)
    outputs, expected = (tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in (answers.there, answers.here))
    reference = _compare_with_reference(job, there, options)
    if len({(reply.runner, reply.results[0].backend) for reply in answers.replies}) != 1:
        raise DeviceError(f"{there.url}: {job.path.name}: the runtime changed between two transfers; run it again")
    if not all(np.isfinite(values).all() for values in expected):
        raise ParityError(f"{job.path}: its outputs hold NaN or infinity on this machine already; see `edgecompress verify`")
    reply = answers.replies[0]
    backend, host_backend = sanitize(reply.results[0].backend, limit=80), answers.host_replies[0].results[0].backend
    manifest = job.manifest
    judgement = judge_outputs(
        outputs, expected, scheme=manifest.quant.scheme, specs=manifest.outputs, scores=job.scores, tolerance=options.tolerance
    )
    problem = judgement.problem
    if problem:
        problem = f"{job.path.name} on {there.url}: {problem} ({backend} there, {host_backend} here); {REMEDY}"
    right, host_right = (_rank_answers(found, answers, job) for found in (outputs, expected))
    host_metrics = _measure_metric(expected, answers, job)
    metrics = _measure_metric(outputs, answers, job) if judgement.parity is not None else {}
    return Evaluation(
        session=secrets.token_hex(16),
        artifact=job.path.name,
        artifact_sha256=manifest.sha256,
        size_bytes=manifest.size_bytes,
        scheme=manifest.quant.scheme,
        device=info,
        runner=sanitize(reply.runner, limit=80),
        backend=backend,
        host_backend=host_backend,
        threads=options.threads,
        data=datasets.describe_dataset(job.samples),
        data_sha256=answers.digest.hexdigest(),
        samples=len(job.indices),
        classes=job.classes,
        top1=right.top1,
        top5=right.top5,
        host_top1=host_right.top1,
        metric=None if job.metric is None else describe_metric(job.metric, host_metrics)[0],
        metrics=metrics,
        host_metrics=host_metrics,
        host=judgement.parity,
        quantization_step=judgement.step,
        beyond_step=judgement.beyond_step,
        reference=reference,
        published_top1=manifest.top1,
        started_at=started_at,
        notes=(*job.notes, *(sanitize(note, limit=300) for note in reply.results[0].notes[:20])),
        problem=problem,
    )


class _Accuracy(NamedTuple):
    """Fractions of the samples whose label ranks first, and among the first five; None where they say nothing."""

    top1: float | None = None
    top5: float | None = None


def _rank_answers(outputs: tuple[Array, ...], answers: _Outputs, job: EvaluationJob) -> _Accuracy:
    if job.scores is None:
        return _Accuracy()
    ranks = rank_labels(outputs[job.scores], np.concatenate(answers.labels))
    return _Accuracy(float((ranks < 1).mean()), float((ranks < 5).mean()) if job.classes >= MIN_TOP5_CLASSES else None)


def _measure_metric(outputs: tuple[Array, ...], answers: _Outputs, job: EvaluationJob) -> dict[str, float]:
    """Return the values of the job's metric; {} without one."""
    if job.metric is None:
        return {}
    specs = job.manifest.outputs
    batch = (y.long() if spec.dtype in INDEX_DTYPES else y for y, spec in zip(to_model_layout(outputs, specs), specs, strict=True))
    targets = datasets.collate_targets(answers.targets, datasets.describe_dataset(job.samples))
    return measure_metric(job.metric, tuple(batch), targets, job.structure)


def _run_chunk(
    job: EvaluationJob, indices: Sequence[int], answers: _Outputs, there: Device, here: Device, options: EvaluationOptions
) -> None:
    """Compute the outputs of one transfer's samples on both machines and add them to `answers`."""
    x, targets, labels = fetch_batch(job, indices)
    inputs = to_artifact_layout(x, job.manifest.inputs)
    columns = [part.numpy().astype("<f4" if part.is_floating_point() else "<i8") for part in x]
    told = [digest_value(target).encode() for target in targets] if labels is None else [y.tobytes() for y in labels.numpy().astype("<i8")]
    for *sample, target in zip(*columns, told, strict=True):  # one by one, so that the digest does not depend on the size of a transfer
        answers.digest.update(b"".join(part.tobytes() for part in sample) + target)
    answers.targets += targets
    if labels is not None:
        answers.labels.append(labels.numpy())
    host_options = EvaluationOptions(threads=options.threads, timeout_s=options.timeout_s)
    answers.here.append(_check_shapes(_infer_chunk(here, job, inputs, host_options, answers.host_replies), job, here.url))
    answers.there.append(_check_shapes(_infer_chunk(there, job, inputs, options, answers.replies), job, there.url))


def _infer_chunk(
    device: Device, job: EvaluationJob, inputs: Sequence[InputArray], options: EvaluationOptions, replies: list[RunnerReply]
) -> tuple[Array, ...]:
    return compute_outputs(
        device,
        job.path,
        inputs,
        threads=options.threads,
        timeout_s=options.timeout_s,
        python=options.python or None,
        runner=Path(options.runner) if options.runner else None,
        on_reply=replies.append,
    )


def _check_shapes(outputs: tuple[Array, ...], job: EvaluationJob, url: str) -> tuple[Array, ...]:
    """Return `outputs` when their shapes are those of the manifest."""
    shapes, told = [output.shape[1:] for output in outputs], [spec.shape[1:] for spec in job.manifest.outputs]
    if shapes != told:
        raise DeviceError(f"{url}: {job.path.name}: outputs of shape {shapes}, the manifest says {told}; export it again")
    return outputs


def _compare_with_reference(job: EvaluationJob, there: Device, options: EvaluationOptions) -> Parity | None:
    """Compare the device with the eager model's outputs kept beside the artifact; None without them, or where they cannot be compared."""
    if not (job.path.parent / REFERENCE).is_file():
        return None
    x, expected = read_reference(job.path.parent, job.manifest.model)
    if [part.shape[1:] for part in x] != [part.shape[1:] for part in job.example]:
        return None
    inputs, specs = to_artifact_layout(x, job.manifest.inputs), job.manifest.outputs
    outputs = to_model_layout(_check_shapes(_infer_chunk(there, job, inputs, options, []), job, there.url), specs)
    return measure_parity(outputs, expected) if batches.has_same_shapes(outputs, expected) and batches.is_finite(outputs) else None
