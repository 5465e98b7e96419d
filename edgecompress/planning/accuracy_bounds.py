"""Reduce a plan's savings until the untrained, decomposed network is accurate enough: a bound on accuracy, or on agreement."""

from typing import Final

import msgspec
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.planning.plan_evaluation import PlanAt, PlanEvaluator, largest_accepted_plan
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan

MIN_SAMPLES: Final = 100  # with fewer inputs, one changed answer is more than a point of accuracy
MIN_AGREEMENT_SAMPLES: Final = 4  # half of them re-estimate BatchNorm, which needs two


def limit_accuracy_drop(
    model: nn.Module,
    plan_at: PlanAt,
    max_drop: float,
    *,
    inputs: Batch,
    judged: tuple[Batch, Tensor | None] | None,
    data_aware: bool,
    track: Track,
) -> CompressionPlan:
    """Return the plan with the largest savings that costs at most `max_drop` points of top-1 after BatchNorm re-estimation.

    Args:
        plan_at: Returns the plan for a fraction of the budget.
        inputs: Inputs to re-estimate BatchNorm on; empty if none are available.
        judged: Inputs and labels to measure accuracy on; without labels, agreement with the dense network is measured.

    Raises:
        ConfigError: Too few inputs to measure a drop on.
    """
    n = batches.count_samples(judged[0]) if judged else 0
    if judged is None or not inputs or n < MIN_SAMPLES:
        raise ConfigError(
            f"max drop {max_drop:g}: {n} inputs to measure it on, {MIN_SAMPLES} are needed; add data to the recipe or give --data"
        )
    evaluator = PlanEvaluator(model, inputs, *judged, data_aware)
    tried: list[tuple[CompressionPlan, float]] = []

    def is_accurate(plan: CompressionPlan) -> bool:
        tried.append((plan, evaluator.accuracy_drop(plan)))
        return tried[-1][1] <= max_drop

    full = plan_at(1.0)
    best = full if is_accurate(full) else largest_accepted_plan(plan_at, is_accurate, track=track)
    failed = [(plan, lost) for plan, lost in tried if lost > max_drop]
    measure = f"points of {'top-1' if judged[1] is not None else 'agreement with the dense network'} on {n} inputs"
    if failed and not best.layers:
        least, lost = failed[-1]
        saved = f"saving {1 - least.macs / least.macs_before:.1%} of the MACs costs {lost:.2f} {measure}"
        note = f"nothing is worth decomposing: {saved}, {max_drop:g} are allowed; ship it quantized"
    else:
        known = [lost for plan, lost in tried if plan is best]  # empty if only the layers fixed by hand are decomposed
        lost = known[0] if known else evaluator.accuracy_drop(best)
        note = f"before fine-tuning it loses {lost:.2f} {measure}; {max_drop:g} are allowed"
    return msgspec.structs.replace(best, notes=(*best.notes, note))


def keep_agreement(
    model: nn.Module,
    full: CompressionPlan,
    plan_at: PlanAt,
    *,
    asked: str,
    inputs: Batch,
    min_agreement: float,
    data_aware: bool,
    track: Track,
) -> CompressionPlan:
    """Return the plan with the largest savings, at most those of `full`, whose predictions agree with the dense network's often enough.

    Used when no training follows. If no savings are accepted, the plan decomposes nothing.

    Args:
        asked: The budget as text, for the plan's note.
        inputs: Inputs, empty if none are available: the first half re-estimates BatchNorm, the second half measures agreement.
        data_aware: Fit the factors to what the layers read from the first half, where a method can.
    """
    samples = batches.count_samples(inputs) if inputs else 0
    if samples < MIN_AGREEMENT_SAMPLES:
        note = f"{asked} was refused: {samples} inputs cannot show whether the network survives it"
        return msgspec.structs.replace(plan_at(0.0), notes=(*full.notes, note))
    half = samples // 2
    recovery, held_out = batches.take_samples(inputs, slice(half)), batches.take_samples(inputs, slice(half, None))
    evaluator = PlanEvaluator(model, recovery, held_out, None, data_aware)
    first = evaluator.agreement(full)
    if first >= min_agreement:
        return full
    best = largest_accepted_plan(plan_at, lambda plan: evaluator.agreement(plan) >= min_agreement, track=track)
    reached = evaluator.agreement(best) if best.layers else 1.0  # layers fixed by hand stay decomposed, whatever they cost
    spent = f"ratio {best.macs / best.macs_before:.2f} keeps {reached:.0%} and was taken" if best.layers else "nothing was decomposed"
    note = (
        f"{asked} was refused: without fine-tuning it leaves {first:.0%} top-1 agreement with the dense model on "
        f"{samples - half} held-out inputs, {min_agreement:.0%} is asked for; {spent}"
    )
    return msgspec.structs.replace(best, notes=(*best.notes, note))
