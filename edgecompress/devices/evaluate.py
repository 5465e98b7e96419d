"""Run labelled inputs through artifacts on a device: how often they are right there, and whether they compute what they compute here."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgecompress import data as datasets
from edgecompress.devices import Device, open_device
from edgecompress.devices.inventory import apply_entry, resolve_device
from edgecompress.devices.labelled_data import Data, EvaluationJob, fetch_batch, prepare_job
from edgecompress.devices.layouts import to_artifact_layout, to_model_layout
from edgecompress.devices.runners.execute import InputArray, check_runner_file, compute_outputs
from edgecompress.devices.runners.protocol import RunnerReply
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError, DeviceError, ParityError
from edgecompress.network import batches
from edgecompress.network.parity import compare
from edgecompress.network.reference import REFERENCE, read_reference
from edgecompress.progress import Track, track_silently
from edgecompress.records import DeviceInfo, Parity, TensorSpec
from edgecompress.records.evaluation import USUAL_SCORING, Evaluation, EvaluationOptions
from edgecompress.records.fields import check_values

Array = npt.NDArray[np.float32]

CHUNK_BYTES: Final = 16 << 20
CHUNK_SAMPLES: Final = 1000
FLOAT_TOLERANCES: Final = {"fp32": 1e-5, "fp16": 1e-3}  # kernels add in another order; some CPUs compute fp16 files in fp16
LEVELS: Final = 256  # of an 8-bit output
TOP5_CLASSES: Final = 10
REMEDY: Final = "install the same runtime there, or allow it with --tolerance"


@dataclass(slots=True)
class _Outputs:
    """What was computed there and here, chunk by chunk."""

    there: list[tuple[Array, ...]] = field(default_factory=list)
    here: list[tuple[Array, ...]] = field(default_factory=list)
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)
    replies: list[RunnerReply] = field(default_factory=list)
    host_replies: list[RunnerReply] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)


def evaluate(
    artifacts: Sequence[Path],
    *,
    data: Data = None,
    device: str = "local://",
    samples: int = USUAL_SCORING.samples,
    batch: int | None = None,
    tolerance: float | None = None,
    threads: int = USUAL_SCORING.threads,
    timeout_s: float = USUAL_SCORING.timeout_s,
    python: str | None = None,
    runner: Path | None = None,
    inventory: Path | None = None,
    on_result: Callable[[Evaluation], object] = lambda _: None,
    track: Track = track_silently,
) -> tuple[Evaluation, ...]:
    """Return top-1 of `artifacts` on `device`, and how far their outputs there are from those of the same files on this machine.

    Args:
        data: A Dataset of `(input, label)`, a path to data, or a recipe (its `eval_data()`); None for those of the run that an artifact
            lies in. Data of a path are preprocessed as the manifest says.
        inventory: The file that has the name in `device`, in place of the usual one.
        on_result: Told each record as soon as there is one, also one that will be a ParityError. The other arguments are the fields of
            `EvaluationOptions`, which says what they mean.

    Raises:
        ConfigError: An artifact without a manifest or labels, data without labels, or data that do not fit it.
        DeviceError: The device or the run on it failed.
        ParityError: An artifact computes something else there than here; raised when all have been evaluated.
    """
    how = EvaluationOptions(
        data=str(data) if isinstance(data, str | Path) else None,
        samples=samples,
        batch=batch,
        tolerance=tolerance,
        threads=threads,
        timeout_s=timeout_s,
        python=python or "",
        runner=str(runner or ""),
    )
    given = data if not isinstance(data, str | Path) else None
    return evaluate_artifacts(artifacts, how, data=given, device=device, inventory=inventory, on_result=on_result, track=track)


def evaluate_artifacts(
    artifacts: Sequence[Path],
    how: EvaluationOptions,
    *,
    device: str,
    data: Data = None,
    inventory: Path | None = None,
    on_result: Callable[[Evaluation], object] = lambda _: None,
    track: Track = track_silently,
) -> tuple[Evaluation, ...]:
    """Return what `evaluate` does, for options that are a record already; `data` may stand in for the path or recipe in it."""
    check_scoring(artifacts, how)
    entry = resolve_device(device, inventory)
    jobs = [prepare_job(Path(path), how.data if data is None else data, how.samples) for path in artifacts]
    with open_device(entry.url) as there:
        return require_parity(evaluate_on_device(there, jobs, apply_entry(how, entry), on_result=on_result, track=track))


def check_scoring(artifacts: Sequence[Path], how: EvaluationOptions) -> None:
    """Refuse what cannot be evaluated before any device is asked.

    Raises:
        ConfigError: No artifacts, a value out of its range, or no such runner.
    """
    if not artifacts:
        raise ConfigError("evaluate: no artifacts; name files or a run folder with artifacts/")
    check_values(how)
    check_runner_file(how.runner)


def evaluate_on_device(
    there: Device,
    jobs: Sequence[EvaluationJob],
    how: EvaluationOptions,
    *,
    on_result: Callable[[Evaluation], object] = lambda _: None,
    track: Track = track_silently,
) -> tuple[Evaluation, ...]:
    """Evaluate artifacts with their data on a device and on this machine, whether they agree or not."""
    made: list[Evaluation] = []
    with open_device("local://") as here:
        info = there.info()
        for job in jobs:
            made.append(_evaluate_job(job, there, here, info, how, track))
            on_result(made[-1])
    return tuple(made)


def require_parity(made: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
    """Return what was found when nothing in it departs from this machine.

    Raises:
        ParityError: Something does.
    """
    if problems := [record.problem for record in made if record.problem]:
        raise ParityError(problems[0])
    return made


# Running


def _evaluate_job(job: EvaluationJob, there: Device, here: Device, info: DeviceInfo, how: EvaluationOptions, track: Track) -> Evaluation:
    """Run everything there and here, then say what came of it."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    size = how.batch or max(1, min(CHUNK_SAMPLES, CHUNK_BYTES // sum(x.numel() * x.element_size() for x in job.example)))
    starts = range(0, len(job.indices), size)
    answers = _Outputs()
    for start in track(starts, f"{job.path.name} on {there.url}", total=len(starts)):
        _run_chunk(job, job.indices[start : start + size], answers, there, here, how)
    outputs, expected = (tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in (answers.there, answers.here))
    labels = np.concatenate(answers.labels)
    reference = _compare_with_reference(job, there, how)
    if len({(reply.runner, reply.results[0].backend) for reply in answers.replies}) != 1:
        raise DeviceError(f"{there.url}: {job.path.name}: the runtime changed between two transfers; run it again")
    reply, host_reply = answers.replies[0], answers.host_replies[0]
    backends = sanitize(reply.results[0].backend, limit=80), host_reply.results[0].backend
    subject = f"{job.path.name} on {there.url}"
    parity, step, beyond, problem = judge_outputs(outputs, expected, job, how.tolerance)
    if problem:
        problem = f"{subject}: {problem} ({backends[0]} there, {backends[1]} here); {REMEDY}"
    ranks = rank_labels(outputs[job.scores], labels)
    return Evaluation(
        session=secrets.token_hex(16),
        artifact=job.path.name,
        artifact_sha256=job.manifest.sha256,
        size_bytes=job.manifest.size_bytes,
        scheme=job.manifest.quant.scheme,
        device=info,
        runner=sanitize(reply.runner, limit=80),
        backend=backends[0],
        host_backend=backends[1],
        threads=how.threads,
        data=datasets.describe_dataset(job.samples),
        data_sha256=answers.digest.hexdigest(),
        samples=len(labels),
        classes=job.classes,
        top1=float((ranks < 1).mean()),
        top5=float((ranks < 5).mean()) if job.classes >= TOP5_CLASSES else None,
        host_top1=float((rank_labels(expected[job.scores], labels) < 1).mean()),
        host=parity,
        quantization_step=step,
        beyond_step=beyond,
        reference=reference,
        published_top1=job.manifest.top1,
        started_at=started_at,
        notes=(*job.notes, *(sanitize(note, limit=300) for note in reply.results[0].notes[:20])),
        problem=problem,
    )


def _run_chunk(job: EvaluationJob, indices: Sequence[int], answers: _Outputs, there: Device, here: Device, how: EvaluationOptions) -> None:
    x, y = fetch_batch(job, indices)
    inputs = to_artifact_layout(x, job.manifest.inputs)
    columns = [part.numpy().astype("<f4" if part.is_floating_point() else "<i8") for part in (*x, y)]
    for sample in zip(*columns, strict=True):  # whatever the size of a transfer
        answers.digest.update(b"".join(part.tobytes() for part in sample))
    answers.labels.append(y.numpy())
    host = EvaluationOptions(threads=how.threads, timeout_s=how.timeout_s)
    answers.here.append(_check_shapes(_infer_chunk(here, job, inputs, host, answers.host_replies), job, here.url))
    answers.there.append(_check_shapes(_infer_chunk(there, job, inputs, how, answers.replies), job, there.url))


def _infer_chunk(
    device: Device, job: EvaluationJob, inputs: Sequence[InputArray], how: EvaluationOptions, replies: list[RunnerReply]
) -> tuple[Array, ...]:
    return compute_outputs(
        device,
        job.path,
        inputs,
        threads=how.threads,
        timeout_s=how.timeout_s,
        python=how.python or None,
        runner=Path(how.runner) if how.runner else None,
        on_reply=replies.append,
    )


def _check_shapes(outputs: tuple[Array, ...], job: EvaluationJob, url: str) -> tuple[Array, ...]:
    shapes, told = [output.shape[1:] for output in outputs], [spec.shape[1:] for spec in job.manifest.outputs]
    if shapes != told:
        raise DeviceError(f"{url}: {job.path.name}: outputs of shape {shapes}, the manifest says {told}; export it again")
    return outputs


def _compare_with_reference(job: EvaluationJob, there: Device, how: EvaluationOptions) -> Parity | None:
    """Compare with the eager model's outputs that are kept beside the artifact; None where there are none, or nothing to compare."""
    if not (job.path.parent / REFERENCE).is_file():
        return None
    x, expected = read_reference(job.path.parent, job.manifest.model)
    if [part.shape[1:] for part in x] != [part.shape[1:] for part in job.example]:
        return None
    inputs, specs = to_artifact_layout(x, job.manifest.inputs), job.manifest.outputs
    outputs = to_model_layout(_check_shapes(_infer_chunk(there, job, inputs, how, []), job, there.url), specs)
    return compare(outputs, expected) if batches.same(outputs, expected) and batches.is_finite(outputs) else None


# Judging


def rank_labels(scores: Array, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the place of each label among its scores, 0 for the first; of equal scores the lower class comes first, as in arg-max."""
    own = np.take_along_axis(scores, labels[:, None], 1)  # (n, 1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    ranks: npt.NDArray[np.int64] = before.sum(1)
    ranks[~np.isfinite(scores).all(1)] = scores.shape[1]  # NaN is larger than nothing, and would come first
    return ranks


def judge_outputs(
    outputs: tuple[Array, ...], expected: tuple[Array, ...], job: EvaluationJob, tolerance: float | None
) -> tuple[Parity | None, float | None, int | None, str]:
    """Return parity with this machine, the scores' quantization step, how many values are beyond theirs, and what is wrong, "" for nothing.

    Raises:
        ParityError: This machine's own outputs are no numbers.
    """
    if not all(np.isfinite(values).all() for values in expected):
        raise ParityError(f"{job.path}: its outputs hold NaN or infinity on this machine already; see `edgecompress verify`")
    values = sum(output.size for output in outputs)
    if broken := sum(int((~np.isfinite(output)).sum()) for output in outputs):
        return None, None, None, f"{broken} of {values} outputs are NaN or infinite there, none here"
    parity = compare(to_model_layout(outputs, ()), to_model_layout(expected, ()))
    step, beyond = None, None
    if job.manifest.quant.scheme.startswith("int8"):
        steps = [quantization_step(wanted, spec) for wanted, spec in zip(expected, job.manifest.outputs, strict=True)]
        step, beyond = steps[job.scores], sum(map(_count_beyond_step, outputs, expected, steps))
    allowed = tolerance if tolerance is not None else FLOAT_TOLERANCES.get(job.manifest.quant.scheme)
    said = f"top-1 agreement {parity.top1_agreement:.2%} on {parity.samples} samples, largest difference {parity.max_rel:.2g} of the range"
    if allowed is not None and parity.max_rel > allowed:
        return parity, step, beyond, f"departs from this machine: {said}, {allowed:g} allowed"
    if allowed is None and beyond:
        over = f"{beyond} of {values} outputs over one quantization step off"
        return parity, step, beyond, f"departs from this machine: {over}, {said}"
    return parity, step, beyond, ""


def _count_beyond_step(output: Array, expected: Array, step: float) -> int:
    """Return how many values are over one step off; half of a thousandth is left for the rounding of dequantized values."""
    return int((np.abs(output.astype(np.float64) - expected) > step * 1.0005).sum())


def quantization_step(expected: Array, spec: TensorSpec) -> float:
    """Return the quantization step of an output: the manifest's, else the grid that the values stand on, else a 255th of their range."""
    if spec.scale:
        return spec.scale
    levels = np.unique(expected)
    if 1 < len(levels) <= LEVELS:
        return float(np.diff(levels.astype(np.float64)).min())
    return float(np.ptp(expected)) / (LEVELS - 1)
