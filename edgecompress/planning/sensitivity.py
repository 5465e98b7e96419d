"""What replacing one layer costs: the distillation loss, measured on real inputs at a few ranks and interpolated between.

Both networks normalise by the statistics of each batch. Replacing a layer shifts what the BatchNorms after it read; re-estimating them
repairs that for nothing, and every network that is compressed has it done. Counted as loss, the shift outweighs the rest in the first
layers of a ResNet, and the planner would spend its budget there.

The loss of a small weight perturbation is quadratic in its size, so between probes log(loss) is taken as linear in log(relative error),
and outside of them with slope two.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations.fitting import factors_of
from edgecompress.factorizations.parallel import Job
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import by_batch
from edgecompress.network.outputs import divergence
from edgecompress.network.surgery import replace
from edgecompress.planning import loss_cache
from edgecompress.planning.activation_cache import Recording, record, resumed
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.progress import Track, silent

Point = tuple[float, float]  # relative error, loss
Losses = dict[tuple[str, str, tuple[int, ...]], float]  # (layer, method, rank) → loss increase

PROBES: Final = 5  # of a layer at the most; one that breaks down between two ranks is far off the line between distant probes
STRAIGHT: Final = math.log(1.5)  # the middle may be off; of a smooth curve the quarters then are off by a quarter of that, 10%
MACS_BUDGET: Final = 2_000_000_000_000  # keeps planning to minutes on two cores
HELD: Final = 20_000_000  # parameters of probes
FEWEST: Final = 32  # inputs; fewer rank layers by chance
FLOOR: Final = 1e-9  # nats; below it is rounding
CEILING: Final = 1e6  # nats; a network that overflows is no worse than that


def measure(
    model: nn.Module, options: Mapping[str, list[Candidate]], inputs: Batch, *, data_aware: bool = False, track: Track = silent
) -> Losses:
    """Return the loss increase of every candidate of every layer, keyed by (layer, method, rank).

    What was measured once is kept in the user's cache, see `known`.

    Args:
        model: Left as it is.
        options: Per layer its candidates, as `candidates` returns them.
        inputs: Real ones.
        data_aware: Fit what is probed to what the layers read, where a method can.

    Raises:
        ConfigError: The dense model's outputs are not finite.
    """
    trial = copy.deepcopy(model).eval()
    if batches.size(inputs) > 1:
        by_batch(trial)
    n = max(1, batches.size(inputs) // max(2, batches.chunk(inputs)))
    parts = list(zip(*(x.tensor_split(n) for x in inputs), strict=True))  # of about the same size, two samples at least
    path = loss_cache.file_of(model, inputs, map(partial(_outputs, trial), parts), data_aware=data_aware)
    losses = loss_cache.load(path)
    points: dict[str, list[Point]] = {layer: [] for layer in options}
    for pick, title in ((first, "measuring sensitivity"), (further, "measuring sensitivity between")):
        work = [(layer, probe) for layer, found in options.items() for probe in pick(found, points[layer])]
        if missing := [(layer, probe) for layer, probe in work if loss_cache.name_of(layer, probe) not in losses]:
            summed = [0.0] * len(missing)
            measured = _losses(model, trial, missing, parts, inputs if data_aware else None)
            for i, loss in track(measured, title, len(missing) * len(parts)):
                summed[i] += loss
            losses |= {loss_cache.name_of(*each): _bounded(loss / batches.size(inputs)) for each, loss in zip(missing, summed, strict=True)}
            loss_cache.store(path, losses)
        for layer, probe in work:
            points[layer].append((probe.relative_error, losses[loss_cache.name_of(layer, probe)]))
    return {(layer, c.method, c.rank): interpolate(points[layer], c.relative_error) for layer, found in options.items() for c in found}


@torch.no_grad()
def _outputs(trial: nn.Module, part: Batch) -> Batch:
    return batches.run(trial, part)


def _bounded(loss: float) -> float:
    return min(max(loss, FLOOR), CEILING) if math.isfinite(loss) else CEILING


def _losses(
    model: nn.Module, trial: nn.Module, work: Sequence[tuple[str, Candidate]], parts: Sequence[Batch], inputs: Batch | None
) -> Iterator[tuple[int, float]]:
    """Yield for each part the index of each probe and the loss it costs, summed over samples; as many probes at a time as fit into HELD.

    Args:
        model: What factors are fitted to: a probe that overflows leaves NaN in the running averages of `trial`.
        trial: A copy, which probes are put into.
    """
    start = 0
    while start < len(work):
        ends = itertools.accumulate(probe.params for _, probe in work[start:])
        end = start + max(1, sum(held <= HELD for held in ends))
        jobs = [Job(layer, model.get_submodule(layer), probe.method, probe.rank, dict(probe.options)) for layer, probe in work[start:end]]
        fitted = factors_of(model, jobs, inputs=inputs)
        for part in parts:
            recording = record(trial, part)
            if not batches.is_finite(recording.outputs):
                raise ConfigError("the dense model's outputs on the planning inputs hold NaN or infinity; mend the model or the data")
            for i, (job, made) in enumerate(zip(jobs, fitted, strict=True), start):
                outputs = _with(trial, job.name, made.compact, part, recording)
                yield i, batches.size(part) * float(divergence(outputs, recording.outputs))
        start = end


@torch.no_grad()
def _with(model: nn.Module, layer: str, compact: nn.Module, part: Batch, recording: Recording) -> Batch:
    """Return the outputs with a layer replaced; `model` is the dense one again afterwards."""
    dense = model.get_submodule(layer)
    with resumed(recording, dense):
        replace(model, layer, compact)
        try:
            return batches.run(model, part)
        finally:
            replace(model, layer, dense)


def affordable(options: Mapping[str, list[Candidate]], macs: int) -> int:
    """Return on how many inputs a network of `macs` can be probed within MACS_BUDGET, at least FEWEST."""
    forwards = 1 + sum(len(_spread(found)) for found in options.values())
    return max(FEWEST, MACS_BUDGET // max(1, macs * forwards))


def first(found: Sequence[Candidate], _: Sequence[Point] = ()) -> list[Candidate]:
    """Pick the probes that every layer gets: the ends of the range and the middle."""
    return _spread(found)[::2]


def further(found: Sequence[Candidate], points: Sequence[Point]) -> list[Candidate]:
    """Pick those between, where the middle is off the line between the ends; where it is not, they are taken to be on it too."""
    if len(points) < 3:
        return _spread(found)[1::2]
    low, middle, high = sorted(points)
    return _spread(found)[1::2] if abs(math.log(middle[1] / interpolate([low, high], middle[0]))) > STRAIGHT else []


def _spread(found: Sequence[Candidate]) -> list[Candidate]:
    """Return up to PROBES candidates spread over the range; the dense one is known to cost nothing."""
    factorized = [c for c in found if c.method != DENSE and c.relative_error > 0]
    n = min(PROBES, len(factorized))
    return [factorized[round(i * (len(factorized) - 1) / max(1, n - 1))] for i in range(n)]


def interpolate(points: Sequence[Point], error: float) -> float:
    """Return the loss at a relative error from measured (error, loss) points, monotone in the error."""
    if error <= 0 or not points:
        return 0.0
    points = sorted(points)
    losses = [max(loss for _, loss in points[: i + 1]) for i in range(len(points))]
    logs = [(math.log(e), math.log(loss)) for (e, _), loss in zip(points, losses, strict=True)]
    x = math.log(error)
    if x <= logs[0][0]:
        return math.exp(logs[0][1] + 2 * (x - logs[0][0]))
    for (x0, y0), (x1, y1) in pairwise(logs):
        if x <= x1:
            return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)) if x1 > x0 else math.exp(y1)
    return math.exp(logs[-1][1] + 2 * (x - logs[-1][0]))


def without_data(options: Mapping[str, list[Candidate]]) -> Losses:
    """Squared relative error in place of a loss, when there is nothing to measure on: every layer counts the same."""
    return {(layer, c.method, c.rank): c.relative_error**2 for layer, found in options.items() for c in found}
