"""The step `plan`: a form for each layer of the network that the present stage starts from."""

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from edgecompress.data import fetch_pairs
from edgecompress.errors import ConfigError
from edgecompress.network.attention import find_unsupported_attention
from edgecompress.network.batches import Batch
from edgecompress.network.surgery import forward
from edgecompress.options import budget_of, cost_scheme_of, has_default_budget, parse_fixed_layers, parse_method
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.latencies import open_costs
from edgecompress.pipeline.networks import load_stage
from edgecompress.planning import stages
from edgecompress.planning.accuracy_bounds import Judged
from edgecompress.planning.constraints import UnreachableError
from edgecompress.planning.plan import plan
from edgecompress.records import Budget, CompressionPlan, LayerPlan, ModelStats
from edgecompress.targets import TARGETS

MIN_SAVING: Final = 0.05  # of the MACs; less is not worth what it costs
JUDGED_SAMPLES: Final = 2000  # The standard error of a top-1 of 90% is then 0.7 points.


def make_plan(context: RunContext) -> CompressionPlan:
    """Plan the present stage, from the dense network or from the network that the stage before left.

    Raises:
        ConfigError: Factors are to be fitted to data, and the run has none.
    """
    metrics = context.check_judging()
    o, stats, before = context.options, context.read(ModelStats), layers_before(context)
    form = parse_method(o)
    plan_for = partial(
        plan,
        stages.restore_dense(load_stage(context, context.stage - 1), context.dense, before),
        stats,
        costs=open_costs(context, stats),
        scheme=cost_scheme_of(o),
        allocator=o.allocator,
        method=form.method,
        options=form.options,
        layers=parse_fixed_layers(o),
        inputs=fetch_planning_inputs(context),
        judged=_fetch_judged(context) if o.max_drop else None,
        data_aware=o.data_aware,
        mixed_precision=o.mixed_precision,
        rank_multiple=TARGETS[o.target].rank_multiple,
        outputs=context.output_specs,
        guarded=not context.repairs,
        min_fidelity=o.min_fidelity,
        stage=stages.Stage(stages.remaining_fraction(context.stage, o.stages, o.weakening), stages.current_forms(before)),
        track=context.track,
    )
    made = _plan_within(budget_of(o), plan_for, is_default=has_default_budget(o))
    notes = [f"{name}: {reason}; its projections stay as they are" for name, reason in find_unsupported_attention(context.dense).items()]
    if assumed := [f"{'higher' if spec.higher_is_better else 'lower'} {spec.name}" for spec in metrics if spec.assumed]:
        notes.append(f"a {' and a '.join(assumed)} is taken to be better, by the name; say higher_is_better in the recipe")
    if context.stage > 1:
        notes.append(f"stage {context.stage}: errors and losses are against the network fine-tuned in stage {context.stage - 1}")
    return msgspec.structs.replace(made, notes=(*notes, *made.notes), outputs=context.output_specs)


def _plan_within(budget: Budget, plan_for: Callable[..., CompressionPlan], *, is_default: bool) -> CompressionPlan:
    """Return the plan for a budget; where nobody asked for the default one and it cannot be reached, that for half of what can be saved.

    The lowest ratio that a network reaches has every layer at its lowest rank, which leaves nothing of the network.

    Raises:
        ConfigError: A budget that was asked for cannot be reached.
    """
    try:
        return plan_for(budget=budget)
    except UnreachableError as error:
        if not is_default or error.lowest_ratio is None:
            raise
        lowest = error.lowest_ratio
        half = (1 + lowest) / 2
        taken = 1.0 if half > 1 - MIN_SAVING else round(half, 2)
        made = plan_for(budget=Budget(macs_ratio=taken))
        note = f"the default, {budget.macs_ratio:g} of the MACs, cannot be reached, {lowest:.2f} at the least; {taken:.2f} was taken"
        return msgspec.structs.replace(made, notes=(*made.notes, note))


def layers_before(context: RunContext) -> tuple[LayerPlan, ...]:
    """Return the layers that are factorized already when the present stage begins, as they are."""
    return context.at_stage(context.stage - 1).read(CompressionPlan).layers if context.stage > 1 else ()


def fetch_planning_inputs(context: RunContext) -> Batch | None:
    """Return real inputs to measure sensitivities on and to fit factors to; None where the run has none.

    Raises:
        ConfigError: Factors are to be fitted to data, and the run has none.
    """
    dataset = context.data.dataset("calibration")
    if dataset is None and context.options.data_aware:
        raise ConfigError(f"{context.recipe.source}: no data for --data-aware; add calibration_data(), give --data, or leave it out")
    return None if dataset is None else context.data.fetch(dataset, context.options.sensitivity_samples, labelled=False)[0]


def _fetch_judged(context: RunContext) -> Judged | None:
    """Return real inputs to measure a loss on: that of the metric where they have targets, else that of fidelity; None without data."""
    dataset = context.data.dataset("calibration")
    if dataset is None:
        return None
    inputs, targets = fetch_pairs(
        dataset, JUDGED_SAMPLES, seed=context.options.seed, example=context.recipe.example_inputs, with_targets=context.metric is not None
    )
    judge = context.create_judge(forward(context.dense, inputs), targets)
    measure = "points of fidelity to the dense network"
    if judge.headline is not None:
        measure = f"{'points' if judge.headline.is_accuracy else 'percent'} of {judge.headline.name}"
    return Judged(inputs, judge.loss, measure)
