"""Loss increase of replacing one layer: measured on real inputs at a few ranks, and interpolated between them.

Both networks normalise by the statistics of each batch. Replacing a layer shifts the inputs of the BatchNorms after it; re-estimation
removes that shift at no cost and is done for every compressed network. If the shift counted as loss, it would outweigh everything else in
the first layers of a ResNet, and the planner would spend its budget there.

The loss of a small weight perturbation is quadratic in its size. So log(loss) is interpolated linearly in log(relative error) between
probes, and extrapolated with slope two beyond them.
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
from edgecompress.factorizations.fitting import fit_layers
from edgecompress.factorizations.parallel import FactorizationJob
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import normalize_by_batch
from edgecompress.network.outputs import Specs, divergence
from edgecompress.network.surgery import replace_module
from edgecompress.planning import loss_cache
from edgecompress.planning.activation_cache import Recording, record_activations, replay_before
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.progress import Track, track_silently

Point = tuple[float, float]  # relative error, loss
Losses = dict[tuple[str, str, tuple[int, ...]], float]  # (layer, method, rank) → loss increase

MAX_PROBES: Final = 5  # probes of one layer; fewer miss a layer whose loss rises steeply between two ranks
MAX_LOG_DEVIATION: Final = math.log(1.5)  # if the middle is within it of a smooth curve, the quarters are within 10%
MAX_MACS: Final = 2_000_000_000_000  # keeps planning to minutes on two cores
MAX_HELD_PARAMS: Final = 20_000_000  # parameters of probes held in memory at a time
MIN_SAMPLES: Final = 32  # with fewer inputs layers are ordered by chance
MIN_LOSS: Final = 1e-9  # nats; smaller losses are rounding
MAX_LOSS: Final = 1e6  # nats; a network that overflows counts as this bad


def measure_losses(
    model: nn.Module,
    options: Mapping[str, list[Candidate]],
    inputs: Batch,
    *,
    specs: Specs | None = None,
    data_aware: bool = False,
    track: Track = track_silently,
) -> Losses:
    """Return the loss increase of every candidate of every layer, keyed by (layer, method, rank).

    Measured losses are kept in the user's cache, see `loss_cache`.

    Args:
        model: The dense model; left unchanged.
        options: Layer → its candidates, as `find_candidates` returns them.
        inputs: Real inputs, a tuple of tensors `(n, …)`.
        specs: The kinds of the outputs, by which losses are measured; None guesses them from the shapes.
        data_aware: Fit the probes to the inputs of their layers, where a method can.

    Raises:
        ConfigError: The dense model's outputs are not finite.
    """
    trial = copy.deepcopy(model).eval()
    if batches.count_samples(inputs) > 1:
        normalize_by_batch(trial)
    n = max(1, batches.count_samples(inputs) // max(2, batches.choose_chunk_size(inputs)))
    parts = list(zip(*(x.tensor_split(n) for x in inputs), strict=True))  # of about equal size, at least two samples each
    path = loss_cache.cache_path(model, inputs, map(partial(_run_part, trial), parts), specs=specs, data_aware=data_aware)
    losses = loss_cache.load_losses(path)
    points: dict[str, list[Point]] = {layer: [] for layer in options}
    for pick, title in ((coarse_probes, "measuring sensitivity"), (fine_probes, "measuring sensitivity between")):
        work = [(layer, probe) for layer, found in options.items() for probe in pick(found, points[layer])]
        if missing := [(layer, probe) for layer, probe in work if loss_cache.form_key(layer, probe) not in losses]:
            summed = [0.0] * len(missing)
            measured = _measure_probes(model, trial, missing, parts, inputs if data_aware else None, specs)
            for i, loss in track(measured, title, len(missing) * len(parts)):
                summed[i] += loss
            samples = batches.count_samples(inputs)
            losses |= {loss_cache.form_key(*each): _clamp_loss(loss / samples) for each, loss in zip(missing, summed, strict=True)}
            loss_cache.store_losses(path, losses)
        for layer, probe in work:
            points[layer].append((probe.relative_error, losses[loss_cache.form_key(layer, probe)]))
    return {(layer, c.method, c.rank): interpolate_loss(points[layer], c.relative_error) for layer, found in options.items() for c in found}


@torch.no_grad()
def _run_part(trial: nn.Module, part: Batch) -> Batch:
    return batches.run_model(trial, part)


def _clamp_loss(loss: float) -> float:
    return min(max(loss, MIN_LOSS), MAX_LOSS) if math.isfinite(loss) else MAX_LOSS


def _measure_probes(
    model: nn.Module,
    trial: nn.Module,
    work: Sequence[tuple[str, Candidate]],
    parts: Sequence[Batch],
    inputs: Batch | None,
    specs: Specs | None,
) -> Iterator[tuple[int, float]]:
    """Yield, for each part of the inputs, the index of each probe and its loss summed over samples; memory holds MAX_HELD_PARAMS of probes.

    Args:
        model: The network that factors are fitted to: probes that overflow leave NaN in the running averages of `trial`.
        trial: A copy of the network, into which probes are put.
    """
    start = 0
    while start < len(work):
        ends = itertools.accumulate(probe.params for _, probe in work[start:])
        end = start + max(1, sum(held <= MAX_HELD_PARAMS for held in ends))
        jobs = [
            FactorizationJob(layer, model.get_submodule(layer), probe.method, probe.rank, dict(probe.options))
            for layer, probe in work[start:end]
        ]
        fitted = fit_layers(model, jobs, inputs=inputs)
        for part in parts:
            recording = record_activations(trial, part)
            if not batches.is_finite(recording.outputs):
                raise ConfigError("the dense model's outputs on the planning inputs hold NaN or infinity; mend the model or the data")
            for i, (job, made) in enumerate(zip(jobs, fitted, strict=True), start):
                outputs = _run_with_layer(trial, job.name, made.compact, part, recording)
                yield i, batches.count_samples(part) * float(divergence(outputs, recording.outputs, specs=specs))
        start = end


@torch.no_grad()
def _run_with_layer(model: nn.Module, layer: str, compact: nn.Module, part: Batch, recording: Recording) -> Batch:
    """Return the network's outputs with one layer replaced; `model` has its dense layer again afterwards."""
    dense = model.get_submodule(layer)
    with replay_before(recording, dense):
        replace_module(model, layer, compact)
        try:
            return batches.run_model(model, part)
        finally:
            replace_module(model, layer, dense)


def affordable_samples(options: Mapping[str, list[Candidate]], macs: int) -> int:
    """Return how many inputs a network of `macs` can be probed on within MAX_MACS, at least MIN_SAMPLES."""
    forwards = 1 + sum(len(_spread_probes(found)) for found in options.values())
    return max(MIN_SAMPLES, MAX_MACS // max(1, macs * forwards))


def coarse_probes(found: Sequence[Candidate], _: Sequence[Point] = ()) -> list[Candidate]:
    """Return the probes that every layer gets: the ends of its range of ranks and the middle."""
    return _spread_probes(found)[::2]


def fine_probes(found: Sequence[Candidate], points: Sequence[Point]) -> list[Candidate]:
    """Return the probes between the coarse ones, none if the middle lies on the line between the ends: then they lie on it too."""
    if len(points) < 3:
        return _spread_probes(found)[1::2]
    low, middle, high = sorted(points)
    deviation = abs(math.log(middle[1] / interpolate_loss([low, high], middle[0])))
    return _spread_probes(found)[1::2] if deviation > MAX_LOG_DEVIATION else []


def _spread_probes(found: Sequence[Candidate]) -> list[Candidate]:
    """Return up to MAX_PROBES factorized candidates spread over the range; the dense one has no loss."""
    factorized = [c for c in found if c.method != DENSE and c.relative_error > 0]
    n = min(MAX_PROBES, len(factorized))
    return [factorized[round(i * (len(factorized) - 1) / max(1, n - 1))] for i in range(n)]


def interpolate_loss(points: Sequence[Point], error: float) -> float:
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


def squared_errors(options: Mapping[str, list[Candidate]]) -> Losses:
    """Return the squared relative error of every candidate, used as its loss if no inputs are available; every layer counts the same."""
    return {(layer, c.method, c.rank): c.relative_error**2 for layer, found in options.items() for c in found}
