"""Factorize many layers: quick ones here, the rest in as many processes as there are cores, and none twice (`cache.py`).

Each fit computes in one thread wherever it runs, so that it gives the same bits here and there. Those of huge layers, of layers on an
accelerator and the only one of a call compute here in all threads; of these the last bits depend on how many threads there are.

Workers hand factors over in files. A pipe would hold them half written where a worker dies while it sends them, and whoever reads there,
as loky's own thread does, waits for the rest for ever; what is small is written at once or not at all.
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
from edgecompress.network.threads import threads
from edgecompress.progress import Track, silent

WORKER_START_S: Final = 2.0  # what starting processes that import torch costs
WORKER_IDLE_S: Final = 30  # workers wait so long for the next call
MAX_WORKER_WEIGHTS: Final = 4_000_000  # weights; several of these at once would take too much memory, and one by one they use threads well
MIN_CACHED_S: Final = 0.01  # a fit that takes no longer, with its error, is not worth an entry in the cache
MIN_FACTORS_CACHED_S: Final = (
    0.25  # one that takes longer is kept there with its factors even if only its error was asked for: that is of many
)


class FactorizationJob(NamedTuple):
    """One call of `factorize`; `name` is the layer's, for messages."""

    name: str
    layer: nn.Module
    method: str
    rank: tuple[int, ...]
    options: dict[str, Any] = {}
    moments: Moments | None = None


class Factorized(NamedTuple):
    compact: Factors
    relative_error: float
    spectral_error: float
    note: str


def factorize_all(
    jobs: Sequence[FactorizationJob], *, processes: int | None = None, cache: str | Path | None = None, track: Track = silent
) -> list[Factorized]:
    """Return the factors, their error and what went less than well of each job, in the order of the jobs.

    Args:
        processes: At most so many; None for the number of cores, which LOKY_MAX_CPU_COUNT sets lower.
        cache: Folder in which results are looked up and kept; None for this user's, "" for none.

    Raises:
        ToolchainError: A worker process died.
        EdgeCompressError: What `factorize` raises, with the layer's name.
    """
    made: dict[int, Factorized] = {}
    for i, compact, fit in track(_iterate_results(jobs, processes, cache, keep=True), "factorizing", len(jobs)):
        made[i] = Factorized(cast(Factors, compact), *fit)
    return [made[i] for i in range(len(jobs))]


def measure_errors(
    jobs: Sequence[FactorizationJob], *, processes: int | None = None, cache: str | Path | None = None, track: Track = silent
) -> list[FitResult]:
    """Return the error and what went less than well of each job as `factorize_all` does, and keep none of the factors in memory."""
    made = {i: fit for i, _, fit in track(_iterate_results(jobs, processes, cache, keep=False), "factorizing candidates", len(jobs))}
    return [made[i] for i in range(len(jobs))]


JobResult = tuple[int, Factors | None, FitResult]  # the job's index, its factors where they were asked for


def _iterate_results(
    jobs: Sequence[FactorizationJob], processes: int | None, given: str | Path | None, *, keep: bool
) -> Iterator[JobResult]:
    folder = cache.cache_folder(given)
    todo: dict[int, str] = {}  # job → its key
    for i, job in enumerate(jobs):
        with _prefix_errors(job.name):
            if get_method(job.method).reject(job.layer) is not None or cast(DenseLayer, job.layer).weight.is_meta:
                _factorize_job(job)  # says why not
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
    """Yield results as they come: the smallest fits from here, and what is left after PATIENCE_S from worker processes."""
    if len(jobs) == 1:
        for i, job in jobs.items():
            yield i, *_fit_and_measure(job, keys[i], folder, keep=keep)
        return
    order = sorted(jobs, key=lambda i: _estimate_work(jobs[i]))
    rest = [i for i in order if _can_run_in_worker(jobs[i])]
    started, done = time.perf_counter(), 0
    while rest:
        spent = time.perf_counter() - started
        if (
            processes != 1
            and len(rest) > 1
            and spent >= WORKER_START_S
            and spent * sum(_estimate_work(jobs[i]) for i in rest) >= WORKER_START_S * done
        ):
            break
        i = rest.pop(0)
        with threads(1):
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
    """Yield results of worker processes; the largest jobs start first, so that none is left over at the end."""
    import joblib

    count = min(len(jobs), processes or joblib.cpu_count())
    left = dict(jobs)
    pool = joblib.Parallel(count, backend="loky", return_as="generator_unordered", batch_size=1, idle_worker_timeout=WORKER_IDLE_S)
    with TemporaryDirectory(prefix="edgecompress-", ignore_cleanup_errors=True) as name:
        handed = Path(name) if keep else None
        tasks = (joblib.delayed(_run_packed_job)(i, _pack_job(job), keys[i], folder, handed) for i, job in jobs.items())
        results = pool(tasks)
        try:
            for i, fit in results:
                del left[i]
                yield i, _collect_factors(handed, i, jobs[i]), fit
        except BrokenExecutor as error:
            names = " or ".join(dict.fromkeys(job.name for job in list(left.values())[:count]))
            raise ToolchainError(
                f"{names}: a worker process died while factorizing it, for want of memory most likely; "
                f"free some, or set LOKY_MAX_CPU_COUNT=1 for one layer at a time"
            ) from error
        finally:
            results.close()


def _collect_factors(handed: Path | None, i: int, job: FactorizationJob) -> Factors | None:
    """Return the factors that a worker has put down, and make them here where the disk was too full for them."""
    if handed is None:
        return None
    compact = _factorize_job(job, fit=False)
    if cache.load_factors(handed, str(i), compact):
        return compact
    with threads(1), _collect_fit_warnings():
        return _factorize_job(job)


class _PackedJob(NamedTuple):
    """A job whose layer is bare: hooks and whatever else hangs on a user's module stay where they are."""

    job: FactorizationJob
    kind: type[nn.Module]
    arguments: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    training: bool


def _pack_job(job: FactorizationJob) -> _PackedJob:
    layer = cast(DenseLayer, job.layer)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    weight = layer.weight.detach().clone(memory_format=torch.contiguous_format)  # of a view, not all that it is a view of
    return _PackedJob(job._replace(layer=nn.Identity()), type(layer), cache.layer_arguments(layer), weight, bias, layer.training)


def _run_packed_job(i: int, packed: _PackedJob, key: str, folder: Path | None, handed: Path | None) -> tuple[int, FitResult]:
    layer = packed.kind(**packed.arguments, device="meta")
    layer.weight = nn.Parameter(packed.weight, requires_grad=False)
    if packed.bias is not None:
        layer.bias = nn.Parameter(packed.bias, requires_grad=False)
    job = packed.job._replace(layer=layer.train(packed.training))
    with threads(1):
        compact, fit = _fit_and_measure(job, key, folder, keep=handed is not None)
    if handed and compact is not None:
        cache.store_fit(handed, str(i), fit, compact)
    return i, fit


def _fit_and_measure(job: FactorizationJob, key: str, folder: Path | None, *, keep: bool) -> tuple[Factors | None, FitResult]:
    """Fit one layer, measure it, and keep in the cache what took long enough to be worth it."""
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
    """Compare the sizes of jobs, roughly."""
    return cast(Tensor, job.layer.weight).numel() * max(1, sum(job.rank))


def _can_run_in_worker(job: FactorizationJob) -> bool:
    """Whether another process may fit this layer in one thread."""
    weight = cast(Tensor, job.layer.weight)
    return weight.device.type == "cpu" and weight.numel() < MAX_WORKER_WEIGHTS


@contextmanager
def _prefix_errors(name: str) -> Iterator[None]:
    """Put the layer's name in front of errors that lack it."""
    try:
        yield
    except EdgeCompressError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise type(error)(f"{name}: {error}") from error


@contextmanager
def _collect_fit_warnings() -> Iterator[list[str]]:
    """Collect the texts of FitWarnings; other warnings go where they went before."""
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
