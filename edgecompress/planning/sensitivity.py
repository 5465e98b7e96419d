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
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from edgecompress import batches
from edgecompress.batches import Batch
from edgecompress.batchnorm import by_batch
from edgecompress.distillation import divergence
from edgecompress.errors import ConfigError
from edgecompress.factorizations import Factors
from edgecompress.factorizations.parallel import Job
from edgecompress.models import replace
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.factors import factors_of
from edgecompress.progress import Track, silent

Losses = dict[tuple[str, str, tuple[int, ...]], float]  # (layer, method, rank) → loss increase

PROBES: Final = 5  # of a layer; one that breaks down between two ranks is far off the line between distant probes
MACS_BUDGET: Final = 2_000_000_000_000  # keeps planning to minutes on two cores
HELD: Final = 20_000_000  # parameters of probes
FEWEST: Final = 32  # inputs; fewer rank layers by chance
FLOOR: Final = 1e-9  # nats; below it is rounding
CEILING: Final = 1e6  # nats; a network that overflows is no worse than that


def measure(
    model: nn.Module, options: Mapping[str, list[Candidate]], inputs: Batch, *, data_aware: bool = False, track: Track = silent
) -> Losses:
    """Return the loss increase of every candidate of every layer, keyed by (layer, method, rank).

    Args:
        model: Left as it is.
        options: Per layer its candidates, as `candidates` returns them.
        inputs: Real ones.
        data_aware: Fit what is probed to what the layers read, where a method can.

    Raises:
        ConfigError: The dense model's outputs are not finite.
    """
    model = copy.deepcopy(model).eval()
    if batches.size(inputs) > 1:
        by_batch(model)
    reference = _outputs(model, inputs)
    if not batches.is_finite(reference):
        raise ConfigError("the dense model's outputs on the planning inputs hold NaN or infinity; mend the model or the data")
    probed: dict[str, list[tuple[float, float]]] = {layer: [] for layer in options}
    work = {layer: chosen for layer, found in options.items() if (chosen := probes(found))}
    made = _probed(model, work, inputs if data_aware else None)
    for layer, probe, compact in track(made, "measuring sensitivity", sum(map(len, work.values()))):
        dense = replace(model, layer, compact)
        loss = float(divergence(_outputs(model, inputs), reference))
        replace(model, layer, dense)
        probed[layer].append((probe.relative_error, min(max(loss, FLOOR), CEILING) if math.isfinite(loss) else CEILING))
    return {(layer, c.method, c.rank): interpolate(probed[layer], c.relative_error) for layer, found in options.items() for c in found}


@torch.inference_mode()
def _outputs(model: nn.Module, inputs: Batch) -> Batch:
    """Return the outputs for all inputs, run in batches of about the same size and of two samples at least."""
    n = max(1, batches.size(inputs) // max(2, batches.chunk(inputs)))
    parts = zip(*(x.tensor_split(n) for x in inputs), strict=True)
    return tuple(torch.cat(column) for column in zip(*(batches.run(model, part) for part in parts), strict=True))


def _probed(model: nn.Module, work: Mapping[str, list[Candidate]], inputs: Batch | None) -> Iterator[tuple[str, Candidate, Factors]]:
    """Yield each layer with each probe and its factors; fitted for several layers at once, of which as many as fit into HELD are held."""
    pairs = [(layer, probe) for layer, chosen in work.items() for probe in chosen]
    while pairs:
        ends = itertools.accumulate(probe.params for _, probe in pairs)
        n = max(1, sum(end <= HELD for end in ends))
        now, pairs = pairs[:n], pairs[n:]
        jobs = [Job(layer, model.get_submodule(layer), probe.method, probe.rank, dict(probe.options)) for layer, probe in now]
        for (layer, probe), made in zip(now, factors_of(model, jobs, inputs=inputs), strict=True):
            yield layer, probe, made.compact


def affordable(options: Mapping[str, list[Candidate]], macs: int) -> int:
    """Return on how many inputs a network of `macs` can be probed within MACS_BUDGET, at least FEWEST."""
    forwards = 1 + sum(len(probes(found)) for found in options.values())
    return max(FEWEST, MACS_BUDGET // max(1, macs * forwards))


def probes(found: list[Candidate]) -> list[Candidate]:
    """Pick up to PROBES candidates spread over the range; the dense one is known to cost nothing."""
    factorized = [c for c in found if c.method != DENSE and c.relative_error > 0]
    n = min(PROBES, len(factorized))
    return [factorized[round(i * (len(factorized) - 1) / max(1, n - 1))] for i in range(n)]


def interpolate(points: list[tuple[float, float]], error: float) -> float:
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
