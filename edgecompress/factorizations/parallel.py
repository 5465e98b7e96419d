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
from edgecompress.factorizations import FitWarning, cache, errors, factorize, method_named, options_of
from edgecompress.factorizations.blocks.layers import Layer
from edgecompress.factorizations.cache import Fit
from edgecompress.factorizations.protocol import Moments
from edgecompress.network.factors import Factors
from edgecompress.network.threads import threads
from edgecompress.progress import Track, silent

PATIENCE_S: Final = 2.0  # what starting processes that import torch costs
IDLE_S: Final = 30  # workers wait so long for the next call
HUGE: Final = 4_000_000  # weights; several of these at once would take too much memory, and one by one they use threads well
QUICK_S: Final = 0.01  # a fit that takes no longer, with its error, is not worth an entry in the cache
SLOW_S: Final = 0.25  # one that takes longer is kept there with its factors even if only its error was asked for: that is of many


class Job(NamedTuple):
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
    jobs: Sequence[Job], *, processes: int | None = None, cache: str | Path | None = None, track: Track = silent
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
    for i, compact, fit in track(_results(jobs, processes, cache, keep=True), "factorizing", len(jobs)):
        made[i] = Factorized(cast(Factors, compact), *fit)
    return [made[i] for i in range(len(jobs))]


def measure_all(jobs: Sequence[Job], *, processes: int | None = None, cache: str | Path | None = None, track: Track = silent) -> list[Fit]:
    """Return the error and what went less than well of each job as `factorize_all` does, and keep none of the factors in memory."""
    made = {i: fit for i, _, fit in track(_results(jobs, processes, cache, keep=False), "factorizing candidates", len(jobs))}
    return [made[i] for i in range(len(jobs))]


Result = tuple[int, Factors | None, Fit]  # the job's index, its factors where they were asked for


def _results(jobs: Sequence[Job], processes: int | None, given: str | Path | None, *, keep: bool) -> Iterator[Result]:
    folder = cache.folder_of(given)
    todo: dict[int, str] = {}  # job → its key
    for i, job in enumerate(jobs):
        with _named(job.name):
            if method_named(job.method).reject(job.layer) is not None or cast(Layer, job.layer).weight.is_meta:
                _factorize(job)  # says why not
            todo[i] = _key(job) if folder else ""
        if folder and (found := cache.load(folder, todo[i])):
            compact = _factorize(job, fit=False) if keep else None
            if compact is None or cache.fill(folder, todo[i], compact):
                del todo[i]
                yield i, compact, found
    yield from _computed({i: jobs[i] for i in todo}, todo, processes, folder, keep=keep)
    if folder and todo:
        cache.trim(folder)


def _computed(jobs: dict[int, Job], keys: dict[int, str], processes: int | None, folder: Path | None, *, keep: bool) -> Iterator[Result]:
    """Yield results as they come: the smallest fits from here, and what is left after PATIENCE_S from worker processes."""
    if len(jobs) == 1:
        for i, job in jobs.items():
            yield i, *_fitted(job, keys[i], folder, keep=keep)
        return
    order = sorted(jobs, key=lambda i: _work(jobs[i]))
    rest = [i for i in order if _may_leave(jobs[i])]
    started, done = time.perf_counter(), 0
    while rest:
        spent = time.perf_counter() - started
        if processes != 1 and len(rest) > 1 and spent >= PATIENCE_S and spent * sum(_work(jobs[i]) for i in rest) >= PATIENCE_S * done:
            break
        i = rest.pop(0)
        with threads(1):
            made = _fitted(jobs[i], keys[i], folder, keep=keep)
        yield i, *made
        done += _work(jobs[i])
    if rest:
        yield from _from_workers({i: jobs[i] for i in reversed(rest)}, keys, processes, folder, keep=keep)
    for i in order:
        if not _may_leave(jobs[i]):
            yield i, *_fitted(jobs[i], keys[i], folder, keep=keep)


def _from_workers(
    jobs: dict[int, Job], keys: dict[int, str], processes: int | None, folder: Path | None, *, keep: bool
) -> Iterator[Result]:
    """Yield results of worker processes; the largest jobs start first, so that none is left over at the end."""
    import joblib

    count = min(len(jobs), processes or joblib.cpu_count())
    left = dict(jobs)
    pool = joblib.Parallel(count, backend="loky", return_as="generator_unordered", batch_size=1, idle_worker_timeout=IDLE_S)
    with TemporaryDirectory(prefix="edgecompress-", ignore_cleanup_errors=True) as name:
        handed = Path(name) if keep else None
        tasks = (joblib.delayed(_work_on)(i, _packed(job), keys[i], folder, handed) for i, job in jobs.items())
        results = pool(tasks)
        try:
            for i, fit in results:
                del left[i]
                yield i, _taken(handed, i, jobs[i]), fit
        except BrokenExecutor as error:
            names = " or ".join(dict.fromkeys(job.name for job in list(left.values())[:count]))
            raise ToolchainError(
                f"{names}: a worker process died while factorizing it, for want of memory most likely; "
                f"free some, or set LOKY_MAX_CPU_COUNT=1 for one layer at a time"
            ) from error
        finally:
            results.close()


def _taken(handed: Path | None, i: int, job: Job) -> Factors | None:
    """Return the factors that a worker has put down, and make them here where the disk was too full for them."""
    if handed is None:
        return None
    compact = _factorize(job, fit=False)
    if cache.fill(handed, str(i), compact):
        return compact
    with threads(1), _noting():
        return _factorize(job)


class _Packed(NamedTuple):
    """A job whose layer is bare: hooks and whatever else hangs on a user's module stay where they are."""

    job: Job
    kind: type[nn.Module]
    arguments: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    training: bool


def _packed(job: Job) -> _Packed:
    layer = cast(Layer, job.layer)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    weight = layer.weight.detach().clone(memory_format=torch.contiguous_format)  # of a view, not all that it is a view of
    return _Packed(job._replace(layer=nn.Identity()), type(layer), cache.arguments_of(layer), weight, bias, layer.training)


def _work_on(i: int, packed: _Packed, key: str, folder: Path | None, handed: Path | None) -> tuple[int, Fit]:
    layer = packed.kind(**packed.arguments, device="meta")
    layer.weight = nn.Parameter(packed.weight, requires_grad=False)
    if packed.bias is not None:
        layer.bias = nn.Parameter(packed.bias, requires_grad=False)
    job = packed.job._replace(layer=layer.train(packed.training))
    with threads(1):
        compact, fit = _fitted(job, key, folder, keep=handed is not None)
    if handed and compact is not None:
        cache.store(handed, str(i), fit, compact)
    return i, fit


def _fitted(job: Job, key: str, folder: Path | None, *, keep: bool) -> tuple[Factors | None, Fit]:
    """Fit one layer, measure it, and keep in the cache what took long enough to be worth it."""
    started = time.perf_counter()
    with _noting() as notes:
        compact = _factorize(job)
    fit = Fit(*errors(job.layer, job.method, compact), "; ".join(note.removeprefix(f"{job.name}: ") for note in notes))
    seconds = time.perf_counter() - started
    if folder and seconds > QUICK_S:
        cache.store(folder, key, fit, compact if keep or seconds > SLOW_S else None)
    return compact if keep else None, fit


def _factorize(job: Job, *, fit: bool = True) -> Factors:
    return factorize(job.layer, job.method, job.rank, name=job.name, options=job.options, moments=job.moments if fit else None, fit=fit)


def _key(job: Job) -> str:
    chosen = msgspec.structs.asdict(options_of(job.method, job.options))
    return cache.key_of(cast(Layer, job.layer), job.method, job.rank, chosen, job.moments)


def _work(job: Job) -> int:
    """Compare the sizes of jobs, roughly."""
    return cast(Tensor, job.layer.weight).numel() * max(1, sum(job.rank))


def _may_leave(job: Job) -> bool:
    """Whether another process may fit this layer in one thread."""
    weight = cast(Tensor, job.layer.weight)
    return weight.device.type == "cpu" and weight.numel() < HUGE


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the layer's name in front of errors that lack it."""
    try:
        yield
    except EdgeCompressError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise type(error)(f"{name}: {error}") from error


@contextmanager
def _noting() -> Iterator[list[str]]:
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
