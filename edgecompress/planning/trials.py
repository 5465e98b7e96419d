"""A plan tried out: decomposed, BatchNorm re-estimated, nothing trained; and the largest share of a budget that a network survives."""

import copy
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor, nn

from edgecompress.factorizations.fitting import factors_of
from edgecompress.factorizations.parallel import Job
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import Before, before, reestimate
from edgecompress.network.outputs import scores_of, top1
from edgecompress.network.parity import agreement
from edgecompress.network.surgery import forward, replace
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan

BISECTIONS: Final = 6
At = Callable[[float], CompressionPlan]  # the plan that spends a share of the budget; 0 decomposes nothing but what was fixed by hand


class Trial(NamedTuple):
    """What plans are tried out on.

    Attributes:
        recovery: Inputs that BatchNorm is re-estimated on, and that factors are fitted to if `data_aware`.
        held_out: Inputs that plans are judged on; `labels` are theirs, where they say how often the network is right.
    """

    model: nn.Module
    recovery: Batch
    held_out: Batch
    labels: Tensor | None
    data_aware: bool

    def dense(self) -> tuple[Batch, Before]:
        """Return what the dense network gives on the held-out inputs, and its BatchNorm statistics."""
        trial = copy.deepcopy(self.model).eval()
        return forward(trial, self.held_out), before(trial, batches.evenly(self.recovery))

    def outputs(self, plan: CompressionPlan, since: Before) -> Batch:
        """Return what the planned network gives on the held-out inputs."""
        trial = copy.deepcopy(self.model).eval()
        jobs = [Job(step.layer, self.model.get_submodule(step.layer), step.method, step.rank, step.options) for step in plan.layers]
        for job, fitted in zip(jobs, factors_of(self.model, jobs, inputs=self.recovery if self.data_aware else None), strict=True):
            replace(trial, job.name, fitted.compact)
        reestimate(trial, batches.evenly(self.recovery), since=since)
        return forward(trial, self.held_out)


def agrees(trial: Trial) -> Callable[[CompressionPlan], float]:
    """Return the function that tells a plan's top-1 agreement with the dense network."""
    reference, since = trial.dense()

    def told(plan: CompressionPlan) -> float:
        same = agreement(trial.outputs(plan, since), reference)
        return 1.0 if same is None else same

    return told


def drops(trial: Trial) -> Callable[[CompressionPlan], float]:
    """Return the function that tells how many points of top-1 a plan loses: of accuracy with labels, of agreement without."""
    reference, since = trial.dense()
    scores = scores_of(reference)

    def told(plan: CompressionPlan) -> float:
        outputs = trial.outputs(plan, since)
        if trial.labels is not None and scores is not None and (after := scores_of(outputs)) is not None:
            return 100 * (top1(scores, trial.labels) - top1(after, trial.labels))
        same = agreement(outputs, reference)
        return 0.0 if same is None else 100 * (1 - same)

    return told


def largest(at: At, survives: Callable[[CompressionPlan], bool], *, track: Track) -> CompressionPlan:
    """Return the plan of the largest share of the budget below all of it that survives, by bisection; `at(0)` when none does."""
    best, low, high = at(0.0), 0.0, 1.0
    for _ in track(range(BISECTIONS), "backing off", BISECTIONS):
        middle = (low + high) / 2
        plan = at(middle)
        if survives(plan):
            low, best = middle, plan
        else:
            high = middle
    return best
