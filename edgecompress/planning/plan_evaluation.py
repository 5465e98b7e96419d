"""Evaluate a plan without training: decompose the network, re-estimate BatchNorm and compare its answers with the dense network's."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from torch import nn

from edgecompress.factorizations.fitting import fit_layers
from edgecompress.factorizations.parallel import FactorizationJob
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import RecordedStatistics, record_statistics, reestimate_batchnorm
from edgecompress.network.fidelity import measure_fidelity
from edgecompress.network.output_kinds import guess_specs
from edgecompress.network.outputs import Specs
from edgecompress.network.surgery import forward, replace_module
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan
from edgecompress.records.outputs import Fidelity

BISECTION_STEPS: Final = 6  # these find the fraction of the budget to 1/64
PlanAt = Callable[[float], CompressionPlan]  # fraction of the budget → plan; 0 decomposes only the layers fixed by hand


@dataclass(frozen=True)
class PlanEvaluator:
    """Measures how much a plan changes a network's answers, before any training.

    Attributes:
        model: The dense network.
        recovery: Inputs that BatchNorm is re-estimated on, and that factors are fitted to if `data_aware`.
        held_out: Inputs that plans are evaluated on.
        specs: The kinds of the outputs; None guesses them from the shapes.
        loss: Returns what outputs for `held_out` lose, in points or percent; None takes the loss of fidelity.
    """

    model: nn.Module
    recovery: Batch
    held_out: Batch
    data_aware: bool
    specs: Specs | None = None
    loss: Callable[[Batch], float] | None = None

    def fidelity(self, plan: CompressionPlan, *, min_kept: float | None = None) -> Fidelity:
        """Return how much the planned network keeps of the dense one on the held-out inputs."""
        return self._fidelity(self._outputs(plan), min_kept)

    def measure_loss(self, plan: CompressionPlan) -> float:
        """Return what a plan costs: by `loss`, or percent of the worst output."""
        outputs = self._outputs(plan)
        if self.loss is not None:
            return self.loss(outputs)
        worst = self._fidelity(outputs, None).worst
        return 0.0 if worst is None else 100 * (1 - worst.kept)

    def _fidelity(self, outputs: Batch, min_kept: float | None) -> Fidelity:
        reference = self._dense[0]
        return measure_fidelity(outputs, reference, self.specs or guess_specs(reference), min_kept=min_kept)

    @cached_property
    def _dense(self) -> tuple[Batch, RecordedStatistics]:
        """The dense network's outputs on the held-out inputs, and its BatchNorm statistics."""
        network = copy.deepcopy(self.model).eval()
        return forward(network, self.held_out), record_statistics(network, batches.split_evenly(self.recovery))

    def _outputs(self, plan: CompressionPlan) -> Batch:
        """Return the planned network's outputs on the held-out inputs."""
        network = copy.deepcopy(self.model).eval()
        jobs = [
            FactorizationJob(step.layer, self.model.get_submodule(step.layer), step.method, step.rank, step.options) for step in plan.layers
        ]
        for job, fitted in zip(jobs, fit_layers(self.model, jobs, inputs=self.recovery if self.data_aware else None), strict=True):
            replace_module(network, job.name, fitted.compact)
        reestimate_batchnorm(network, batches.split_evenly(self.recovery), since=self._dense[1])
        return forward(network, self.held_out)


def largest_accepted_plan(plan_at: PlanAt, accepts: Callable[[CompressionPlan], bool], *, track: Track) -> CompressionPlan:
    """Return the plan for the largest accepted fraction of the budget below 1, found by bisection; `plan_at(0)` if none is accepted."""
    best, low, high = plan_at(0.0), 0.0, 1.0
    for _ in track(range(BISECTION_STEPS), "backing off", BISECTION_STEPS):
        middle = (low + high) / 2
        plan = plan_at(middle)
        if accepts(plan):
            low, best = middle, plan
        else:
            high = middle
    return best
