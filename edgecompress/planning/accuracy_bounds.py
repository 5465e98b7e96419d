"""Reduce a plan's savings until the untrained, decomposed network keeps enough of the dense one: a bound on the metric, or on fidelity."""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.fidelity import describe_loss, describe_output_fidelity
from edgecompress.network.outputs import Specs, scores_of, top1
from edgecompress.network.surgery import forward
from edgecompress.planning.plan_evaluation import PlanAt, PlanEvaluator, largest_accepted_plan
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan
from edgecompress.records.outputs import Fidelity

MIN_SAMPLES: Final = 100  # with fewer inputs, one changed answer is more than a point of accuracy
MIN_FIDELITY_SAMPLES: Final = 4  # half of them re-estimate BatchNorm, which needs two
# Fractions of the budget that are tried before sensitivities are measured for minutes: if the least of them is refused, so is everything.
FIRST_TRIES: Final = (1.0, 1 / 8, 1 / 64)


class Judged(NamedTuple):
    """Inputs that a plan's loss is measured on.

    Attributes:
        loss: Returns what outputs for the inputs lose: points of an accuracy, percent of another metric or of the worst output.
        measure: The unit of the loss, in words.
    """

    inputs: Batch
    loss: Callable[[Batch], float] | None
    measure: str


def judge_by_labels(model: nn.Module, inputs: Batch, labels: Tensor | None, specs: Specs | None = None) -> Judged:
    """Return inputs that are judged by top-1 where labels and class scores are there, else by fidelity."""
    reference = forward(model, inputs)
    dense = scores_of(reference, specs)
    if labels is None or dense is None:
        return Judged(inputs, None, "points of fidelity to the dense network")
    before = top1(dense, labels)

    def lose_points(outputs: Batch) -> float:
        scores = scores_of(outputs, specs)
        assert scores is not None
        return 100 * (before - top1(scores, labels))

    return Judged(inputs, lose_points, "points of top-1")


def limit_loss(
    model: nn.Module,
    plan_at: PlanAt,
    max_drop: float,
    *,
    inputs: Batch,
    judged: Judged | None,
    specs: Specs | None = None,
    data_aware: bool,
    track: Track,
) -> CompressionPlan:
    """Return the plan with the largest savings that costs at most `max_drop` after BatchNorm re-estimation.

    Args:
        plan_at: Returns the plan for a fraction of the budget.
        inputs: Inputs to re-estimate BatchNorm on; empty if none are available.

    Raises:
        ConfigError: Too few inputs to measure a drop on.
    """
    n = batches.count_samples(judged.inputs) if judged else 0
    if judged is None or not inputs or n < MIN_SAMPLES:
        raise ConfigError(
            f"max drop {max_drop:g}: {n} inputs to measure it on, {MIN_SAMPLES} are needed; add data to the recipe or give --data"
        )
    evaluator = PlanEvaluator(model, inputs, judged.inputs, data_aware, specs, judged.loss)
    tried: list[tuple[CompressionPlan, float]] = []

    def is_accurate(plan: CompressionPlan) -> bool:
        tried.append((plan, evaluator.measure_loss(plan)))
        return tried[-1][1] <= max_drop

    full = plan_at(1.0)
    best = full if is_accurate(full) else largest_accepted_plan(plan_at, is_accurate, track=track)
    failed = [(plan, lost) for plan, lost in tried if lost > max_drop]
    measure = f"{judged.measure} on {n} inputs"
    if failed and not best.layers:
        least, lost = failed[-1]
        saved = f"saving {1 - least.macs / least.macs_before:.1%} of the MACs costs {lost:.2f} {measure}"
        note = f"nothing is worth decomposing: {saved}, {max_drop:g} are allowed; ship it quantized"
    else:
        known = [lost for plan, lost in tried if plan is best]  # empty if only the layers fixed by hand are decomposed
        lost = known[0] if known else evaluator.measure_loss(best)
        note = f"before fine-tuning it loses {lost:.2f} {measure}; {max_drop:g} are allowed"
    return _refuse_budget(best, note) if failed else msgspec.structs.replace(best, notes=(*best.notes, note))


class FidelityGuard:
    """Lets only plans pass that keep enough of the dense network without training.

    Args:
        inputs: The first half re-estimates BatchNorm, the second half measures fidelity.
        min_fidelity: The least that every output keeps; None for the bounds of the kinds.
        data_aware: Fit the factors to what the layers read from the first half, where a method can.
    """

    def __init__(self, model: nn.Module, inputs: Batch, *, min_fidelity: float | None, specs: Specs | None, data_aware: bool) -> None:
        self.samples = batches.count_samples(inputs) if inputs else 0
        self.min_fidelity = min_fidelity
        half = self.samples // 2
        if self.samples >= MIN_FIDELITY_SAMPLES:
            recovery, held_out = batches.take_samples(inputs, slice(half)), batches.take_samples(inputs, slice(half, None))
            self.evaluator = PlanEvaluator(model, recovery, held_out, data_aware, specs)

    def measure(self, plan: CompressionPlan) -> Fidelity:
        return self.evaluator.fidelity(plan, min_kept=self.min_fidelity)

    def refuses_everything(self, plan_at: PlanAt) -> CompressionPlan | None:
        """Return the smallest plan if even its savings cost too much, so that no further measurement can help; None otherwise.

        Args:
            plan_at: Plans by errors of weights alone, which need no measurement.
        """
        if self.samples < MIN_FIDELITY_SAMPLES:
            return plan_at(FIRST_TRIES[-1])
        plan = None
        for fraction in FIRST_TRIES:
            plan = plan_at(fraction)
            if not plan.layers or self.measure(plan).holds:
                return None
        return plan

    def keep(self, full: CompressionPlan, plan_at: PlanAt, *, asked: str, track: Track) -> CompressionPlan:
        """Return the plan with the largest savings, at most those of `full`, that keeps enough; it decomposes nothing if none does.

        Args:
            asked: The budget as text, for the plan's note.
        """
        if self.samples < MIN_FIDELITY_SAMPLES:
            note = f"{asked} was refused: {self.samples} inputs cannot show whether the network survives it"
            return _refuse_budget(plan_at(0.0), note)
        first = self.measure(full)
        if first.holds:
            return full
        measured: list[tuple[CompressionPlan, Fidelity]] = []

        def holds(plan: CompressionPlan) -> bool:
            measured.append((plan, self.measure(plan)))
            return measured[-1][1].holds

        best = largest_accepted_plan(plan_at, holds, track=track)
        spent = "nothing was decomposed"
        if best.layers:  # layers fixed by hand stay decomposed, whatever they cost
            known = [found for plan, found in measured if plan is best]
            worst = (known[0] if known else self.measure(best)).worst
            kept = "" if worst is None else f" {describe_output_fidelity(worst)} and"
            spent = f"ratio {best.macs / best.macs_before:.2f}{kept} was taken"
        note = f"{self._describe_refusal(asked, first)}; {spent}"
        return _refuse_budget(best, note)

    def refuse(self, tried: CompressionPlan, plan_at: PlanAt, *, asked: str) -> CompressionPlan:
        """Return the plan that decomposes nothing but the layers fixed by hand, with the reason."""
        if self.samples < MIN_FIDELITY_SAMPLES:
            note = f"{asked} was refused: {self.samples} inputs cannot show whether the network survives it"
        else:
            saved = 1 - tried.macs / tried.macs_before
            even = f"{asked}, and even saving {saved:.1%} of the MACs,"
            note = f"{self._describe_refusal(even, self.measure(tried))}; nothing was decomposed"
        return _refuse_budget(plan_at(0.0), note)

    def _describe_refusal(self, asked: str, found: Fidelity) -> str:
        return f"{asked} was refused: without fine-tuning {describe_loss(found)}, on {found.samples} held-out inputs"


def _refuse_budget(plan: CompressionPlan, why: str) -> CompressionPlan:
    """Return a plan that saves less than its budget asks for, with the reason."""
    return msgspec.structs.replace(plan, notes=(*plan.notes, why), refusal=why)
