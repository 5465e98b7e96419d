"""Factorize many layers: quick fits in this process, the rest in as many processes as there are cores, and none twice (`cache.py`).

Each fit computes in one thread, so it gives the same bits in every process. Huge layers, layers on an accelerator and the only layer of a
call are fitted in this process with all threads; their last bits depend on the number of threads.

Worker processes return factors in files. If a worker died while it sent factors through a pipe, the reader, loky's own thread, would wait
for the rest forever; only small messages are written to a pipe all at once or not at all.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, cast

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.errors import EdgeCompressError, ToolchainError
from edgecompress.factorizations import FitWarning, cache, factorize, get_method, parse_options, reconstruction_errors
from edgecompress.factorizations.blocks.layers import DenseLayer
from edgecompress.factorizations.cache import FitResult
from edgecompress.factorizations.protocol import Moments
from edgecompress.network.factors import Factors
from edgecompress.network.threads import use_threads
from edgecompress.progress import Track, track_silently

WORKER_START_S: Final = 2.0  # starting processes that import torch takes about so long
WORKER_IDLE_S: Final = 30  # idle workers stay so long, so that the next call need not start new ones
MAX_WORKER_WEIGHTS: Final = 4_000_000  # larger layers take too much memory several at a time, and use threads well one at a time
MIN_CACHED_S: Final = 0.01  # computing a quicker fit again costs less than an entry in the cache
MIN_FACTORS_CACHED_S: Final = 0.25  # slower fits are cached with their factors even if only errors are wanted: a plan may choose them


class FactorizationJob(NamedTuple):
    """The arguments of one call of `factorize`; `name` is the layer's name in messages."""

    name: str
    layer: nn.Module
    method: str
    rank: tuple[int, ...]
    options: dict[str, Any] = {}
    moments: Moments | None = None


class Factorized(NamedTuple):
    """The factors of a layer, their errors, and a note on how the fit fell short; "" if it did not."""

    compact: Factors
    relative_error: float
    spectral_error: float
    note: str


def factorize_all(
    jobs: Sequence[FactorizationJob], *, processes: int | None = None, cache: str | Path | None = None, track: Track = track_silently
) -> list[Factorized]:
    """Return the fitted factors of each job with their errors, in the order of the jobs.

    Args:
        processes: Maximum number of worker processes; None for the number of cores, which LOKY_MAX_CPU_COUNT can lower.
        cache: Cache folder for results; None for this user's, "" for no cache.

    Raises:
        ToolchainError: A worker process died.
        EdgeCompressError: As `factorize`, with the layer's name.
    """
    made: dict[int, Factorized] = {}
    for i, compact, fit in track(_iterate_results(jobs, processes, cache, keep=True), "factorizing", len(jobs)):
        made[i] = Factorized(cast(Factors, compact), *fit)
    return [made[i] for i in range(len(jobs))]


def measure_errors(
    jobs: Sequence[FactorizationJob], *, processes: int | None = None, cache: str | Path | None = None, track: Track = track_silently
) -> list[FitResult]:
    """Return the errors of each job as `factorize_all` does, without keeping the factors in memory."""
    made = {i: fit for i, _, fit in track(_iterate_results(jobs, processes, cache, keep=False), "factorizing candidates", len(jobs))}
    return [made[i] for i in range(len(jobs))]


JobResult = tuple[int, Factors | None, FitResult]  # the job's index, and its factors if they are wanted


def _iterate_results(
    jobs: Sequence[FactorizationJob], processes: int | None, given: str | Path | None, *, keep: bool
) -> Iterator[JobResult]:
    """Yield the result of each job, from the cache or computed, as soon as it is known."""
    folder = cache.cache_folder(given)
    todo: dict[int, str] = {}  # job → its key
    for i, job in enumerate(jobs):
        with _prefix_errors(job.name):
            if get_method(job.method).reject(job.layer) is not None or cast(DenseLayer, job.layer).weight.is_meta:
                _factorize_job(job)  # raises the error with the reason
            todo[i] = _cache_key(job) if folder else ""
        if folder and (found := cache.load_fit(folder, todo[i])):
            compact = _factorize_job(job, fit=False) if keep else None
            if compact is None or cache.load_factors(folder, todo[i], compact):
                del todo[i]
                yield i, compact, found
    yield from _compute_results({i: jobs[i] for i in todo}, todo, processes, folder, keep=keep)
    if folder and todo:
        cache.trim_folder(folder)


def _compute_results(
    jobs: dict[int, FactorizationJob], keys: dict[int, str], processes: int | None, folder: Path | None, *, keep: bool
) -> Iterator[JobResult]:
    """Yield results as they come: the smallest fits from this process, and those left after WORKER_START_S from worker processes."""
    if len(jobs) == 1:
        for i, job in jobs.items():
            yield i, *_fit_and_measure(job, keys[i], folder, keep=keep)
        return
    order = sorted(jobs, key=lambda i: _estimate_work(jobs[i]))
    rest = [i for i in order if _can_run_in_worker(jobs[i])]
    started, done = time.perf_counter(), 0
    while rest:
        spent = time.perf_counter() - started
        work_left = sum(_estimate_work(jobs[i]) for i in rest)
        if processes != 1 and len(rest) > 1 and spent >= WORKER_START_S and spent * work_left >= WORKER_START_S * done:
            break
        i = rest.pop(0)
        with use_threads(1):
            made = _fit_and_measure(jobs[i], keys[i], folder, keep=keep)
        yield i, *made
        done += _estimate_work(jobs[i])
    if rest:
        yield from _compute_in_workers({i: jobs[i] for i in reversed(rest)}, keys, processes, folder, keep=keep)
    for i in order:
        if not _can_run_in_worker(jobs[i]):
            yield i, *_fit_and_measure(jobs[i], keys[i], folder, keep=keep)


def _compute_in_workers(
    jobs: dict[int, FactorizationJob], keys: dict[int, str], processes: int | None, folder: Path | None, *, keep: bool
) -> Iterator[JobResult]:
    """Yield results of worker processes; the largest jobs start first, so that the workers finish at about the same time."""
    import joblib

    count = min(len(jobs), processes or joblib.cpu_count())
    left = dict(jobs)
    pool = joblib.Parallel(count, backend="loky", return_as="generator_unordered", batch_size=1, idle_worker_timeout=WORKER_IDLE_S)
    with TemporaryDirectory(prefix="edgecompress-", ignore_cleanup_errors=True) as name:
        handover = Path(name) if keep else None
        tasks = (joblib.delayed(_run_packed_job)(i, _pack_job(job), keys[i], folder, handover) for i, job in jobs.items())
        results = pool(tasks)
        try:
            for i, fit in results:
                del left[i]
                yield i, _collect_factors(handover, i, jobs[i]), fit
        except BrokenExecutor as error:
            names = " or ".join(dict.fromkeys(job.name for job in list(left.values())[:count]))
            raise ToolchainError(
                f"{names}: a worker process died while factorizing it, for want of memory most likely; "
                f"free some, or set LOKY_MAX_CPU_COUNT=1 for one layer at a time"
            ) from error
        finally:
            results.close()


def _collect_factors(handover: Path | None, i: int, job: FactorizationJob) -> Factors | None:
    """Return the factors that a worker has written to a file; fit them in this process if the disk was too full for the file."""
    if handover is None:
        return None
    compact = _factorize_job(job, fit=False)
    if cache.load_factors(handover, str(i), compact):
        return compact
    with use_threads(1), _collect_fit_warnings():
        return _factorize_job(job)


class _PackedJob(NamedTuple):
    """A job with only the class, arguments and weights of its layer, without hooks and other attributes of the user's module."""

    job: FactorizationJob
    kind: type[nn.Module]
    arguments: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    training: bool


def _pack_job(job: FactorizationJob) -> _PackedJob:
    """Return a job in the form that is sent to a worker process."""
    layer = cast(DenseLayer, job.layer)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    weight = layer.weight.detach().clone(memory_format=torch.contiguous_format)  # copies a view alone, not the whole tensor behind it
    return _PackedJob(job._replace(layer=nn.Identity()), type(layer), cache.layer_arguments(layer), weight, bias, layer.training)


def _run_packed_job(i: int, packed: _PackedJob, key: str, folder: Path | None, handover: Path | None) -> tuple[int, FitResult]:
    """Run a job in a worker process; write its factors to the folder `handover` unless that is None."""
    layer = packed.kind(**packed.arguments, device="meta")
    layer.weight = nn.Parameter(packed.weight, requires_grad=False)
    if packed.bias is not None:
        layer.bias = nn.Parameter(packed.bias, requires_grad=False)
    job = packed.job._replace(layer=layer.train(packed.training))
    with use_threads(1):
        compact, fit = _fit_and_measure(job, key, folder, keep=handover is not None)
    if handover and compact is not None:
        cache.store_fit(handover, str(i), fit, compact)
    return i, fit


def _fit_and_measure(job: FactorizationJob, key: str, folder: Path | None, *, keep: bool) -> tuple[Factors | None, FitResult]:
    """Fit one layer, measure its errors, and cache the result if it took long enough."""
    started = time.perf_counter()
    with _collect_fit_warnings() as notes:
        compact = _factorize_job(job)
    fit = FitResult(*reconstruction_errors(job.layer, job.method, compact), "; ".join(note.removeprefix(f"{job.name}: ") for note in notes))
    seconds = time.perf_counter() - started
    if folder and seconds > MIN_CACHED_S:
        cache.store_fit(folder, key, fit, compact if keep or seconds > MIN_FACTORS_CACHED_S else None)
    return compact if keep else None, fit


def _factorize_job(job: FactorizationJob, *, fit: bool = True) -> Factors:
    return factorize(job.layer, job.method, job.rank, name=job.name, options=job.options, moments=job.moments if fit else None, fit=fit)


def _cache_key(job: FactorizationJob) -> str:
    chosen = msgspec.structs.asdict(parse_options(job.method, job.options))
    return cache.fit_key(cast(DenseLayer, job.layer), job.method, job.rank, chosen, job.moments)


def _estimate_work(job: FactorizationJob) -> int:
    """Return a rough measure of a job's size, for comparison with other jobs."""
    return cast(Tensor, job.layer.weight).numel() * max(1, sum(job.rank))


def _can_run_in_worker(job: FactorizationJob) -> bool:
    """Return whether another process may fit this layer in one thread."""
    weight = cast(Tensor, job.layer.weight)
    return weight.device.type == "cpu" and weight.numel() < MAX_WORKER_WEIGHTS


@contextmanager
def _prefix_errors(name: str) -> Iterator[None]:
    """Prefix errors that lack it with the layer's name."""
    try:
        yield
    except EdgeCompressError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise type(error)(f"{name}: {error}") from error


@contextmanager
def _collect_fit_warnings() -> Iterator[list[str]]:
    """Collect the texts of FitWarnings; other warnings are shown as before."""
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", FitWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, FitWarning):
                notes.append(str(message))
            else:
                show(message, category, *place, **more)

        warnings.showwarning = note
        yield notes
