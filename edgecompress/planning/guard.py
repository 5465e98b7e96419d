"""When nothing will repair the network afterwards: spend only as much of a budget as its predictions survive."""

import copy
from collections.abc import Callable
from typing import Final

import msgspec
from torch import nn

from edgecompress import batches
from edgecompress.batches import Batch
from edgecompress.batchnorm import reestimate
from edgecompress.distillation import agreement
from edgecompress.factorizations.parallel import Job
from edgecompress.models import forward, replace
from edgecompress.planning.factors import factors_of
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan

BISECTIONS: Final = 5
FEWEST: Final = 4  # BatchNorm needs two to re-estimate on


def guarded(
    model: nn.Module,
    made: CompressionPlan,
    at: Callable[[float], CompressionPlan],
    *,
    inputs: Batch,
    min_agreement: float,
    data_aware: bool,
    track: Track,
) -> CompressionPlan:
    """Return `made` if the network survives it, else the largest saving that it survives, else a plan that decomposes nothing.

    Args:
        at: The plan for another MACs ratio; `at(1.0)` decomposes nothing.
        inputs: Empty where there are none. The first half re-estimates BatchNorm, the second measures agreement with the dense model.
        data_aware: Fit to what the layers read from the first half, where a method can.
    """
    samples = batches.size(inputs) if inputs else 0
    if samples < FEWEST:
        note = f"MACs ratio {made.macs_ratio:g} was refused: {samples} inputs cannot show whether the network survives it"
        return msgspec.structs.replace(at(1.0), notes=(*made.notes, note))
    half = samples // 2
    recovery, held_out = batches.take(inputs, slice(half)), batches.take(inputs, slice(half, None))
    reference = forward(copy.deepcopy(model).eval(), held_out)

    def survived(plan: CompressionPlan) -> float:
        trial = copy.deepcopy(model).eval()
        jobs = [Job(step.layer, model.get_submodule(step.layer), step.method, step.rank, step.options) for step in plan.layers]
        for job, fitted in zip(jobs, factors_of(model, jobs, inputs=recovery if data_aware else None), strict=True):
            replace(trial, job.name, fitted.compact)
        reestimate(trial, batches.evenly(recovery))
        same = agreement(forward(trial, held_out), reference)
        return 1.0 if same is None else same

    first = survived(made)
    if first >= min_agreement:
        return made
    best = at(1.0)
    reached = survived(best) if best.layers else 1.0  # layers that were fixed by hand stay, whatever they cost
    low, high = made.macs_ratio, 1.0
    for _ in track(range(BISECTIONS), "backing off", BISECTIONS):
        middle = (low + high) / 2
        trial = at(middle)
        same = survived(trial)
        if same >= min_agreement:
            high, best, reached = middle, trial, same
        else:
            low = middle
    spent = f"ratio {best.macs / best.macs_before:.2f} keeps {reached:.0%} and was taken" if best.layers else "nothing was decomposed"
    note = (
        f"MACs ratio {made.macs_ratio:g} was refused: without fine-tuning it leaves {first:.0%} top-1 agreement with the dense model on "
        f"{samples - half} held-out inputs, {min_agreement:.0%} is asked for; {spent}"
    )
    return msgspec.structs.replace(best, notes=(*best.notes, note))
