"""Choose a form and a rank for every layer, so that the budget is spent where the device gains and the network notices it least."""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.options import AUTO, DEFAULT_MACS_RATIO, Choice, check_budget
from edgecompress.planning import accuracy, constraints, dtypes, guard, sensitivity, stages
from edgecompress.planning.allocators import allocator_named
from edgecompress.planning.choices import candidates_of, forms_of
from edgecompress.planning.latencies import Costs, chosen_forms, priced
from edgecompress.planning.problem import Problem, Weighed, weigh
from edgecompress.progress import Track, silent
from edgecompress.records import Budget, CompressionPlan, ModelStats

AGAIN: Final = 2  # times that what a plan chose is measured once more, and the plan made anew


def plan(
    model: nn.Module,
    stats: ModelStats,
    *,
    macs_ratio: float | None = None,
    budget: Budget | None = None,
    costs: Costs | None = None,
    scheme: str = "int8-static",
    allocator: str = "latency",
    method: str = AUTO,
    options: Mapping[str, Any] | None = None,
    layers: Mapping[str, Choice | tuple[str, tuple[int, ...]]] | None = None,
    inputs: Batch | None = None,
    judged: tuple[Batch, Tensor | None] | None = None,
    data_aware: bool = False,
    mixed_precision: bool = False,
    rank_multiple: int = 8,
    min_agreement: float | None = None,
    stage: stages.Stage = stages.ONLY,
    track: Track = silent,
) -> CompressionPlan:
    """Return a plan that keeps the network within every budget that is given, at the least predicted loss.

    Args:
        model: The dense model; left untouched.
        stats: What `analyze` found for it.
        budget: All of it holds. A latency or speed-up needs `costs`. With `max_drop`, measured on `judged` after BatchNorm re-estimation,
            the plan is the one that saves most within it, and no more than the other budgets ask for.
        macs_ratio: Short for a budget of this alone; 0.35 where no budget is given.
        costs: What layers take on the device. With them, nothing is chosen that is slower than the dense layer, and MACs are saved where
            that saves time.
        scheme: Of the files that a size is for.
        allocator: One of ALLOCATORS: how the budget is shared out.
        method: One of METHODS for every layer, or "auto" for whichever of those in closed form suits a layer best.
        options: Of the method, see its `Options`.
        layers: Fixed choices, layer → (method, rank), (method, rank, options) or ("dense", ()); the rest of the budget goes to the others.
        inputs: Real ones, a tuple `(x,)` or `(x, y, …)` of tensors `(n, …)`, for the sensitivities; without them a squared relative error
            counts the same everywhere.
        judged: Other real inputs, with labels or None, for a budget's `max_drop`.
        data_aware: What is measured on `inputs` is fitted to them too, as `decompose` does when it is given inputs.
        mixed_precision: With costs of int8-static files: also choose, jointly with the forms, which layers stay in float. What rounding a
            layer costs the loss is measured as what factorizing it costs.
        rank_multiple: Ranks are multiples of it where a layer is wide enough.
        min_agreement: When nothing will repair the network afterwards: spend no more of the budget than leaves this top-1 agreement
            with the dense model, measured on the second half of `inputs` after BatchNorm re-estimation on the first.
        stage: Of several, how far this one is to go and what it starts from; `model` is then the network fine-tuned in the stage before,
            with dense layers, and errors and losses are against it.

    Raises:
        ConfigError: Unknown allocator, method, option or layer, a latency budget without costs, or a budget that no choice of ranks
            reaches; the message names the nearest that can be.
        UnsupportedError: A fixed choice cannot take its layer, or the allocator has no measure for a method.
        ToolchainError: A process that factorized layers died.
        DeviceError: Costs could not be measured.
    """
    budget = check_budget(budget or Budget(macs_ratio=DEFAULT_MACS_RATIO if macs_ratio is None else macs_ratio))
    if costs is None and (budget.latency_ms is not None or budget.speedup is not None):
        raise ConfigError(f"{constraints.said(budget)}: milliseconds are a device's; give costs measured there, or a MACs ratio")
    chooser = allocator_named(allocator)
    forms = forms_of(method, options, measured=costs is not None)
    fixed = {name: Choice(*choice) for name, choice in (layers or {}).items()}
    choices = candidates_of(model, stats, forms, fixed=fixed, multiple=rank_multiple, present=stage.present, track=track)
    joint = mixed_precision and costs is not None and costs.scheme == dtypes.JOINT and inputs is not None
    candidates = dtypes.with_float(choices.candidates) if joint else choices.candidates
    latencies = priced(model, stats, candidates, costs) if costs else None  # a device that refuses does so before the long work
    if inputs is None:
        losses = sensitivity.without_data(choices.candidates)
    else:
        few = batches.take(batches.check(inputs, "planning inputs"), slice(sensitivity.affordable(choices.candidates, stats.macs)))
        losses = sensitivity.measure(model, choices.candidates, few, data_aware=data_aware, track=track)
    rounding = dtypes.rounding_losses(model, [layer.name for layer in stats.layers], few, track=track) if joint else {}
    problem = Problem(
        model=model,
        stats=stats,
        budget=budget,
        allocator=allocator,
        chooser=chooser,
        candidates=candidates,
        choices=choices,
        losses=losses,
        rounding=rounding,
        fixed=frozenset(fixed),
        stage=stage,
        scheme=costs.scheme if costs else scheme,
        notes=() if inputs is not None else ("no data: sensitivities are squared relative errors, every layer weighed the same",),
    )
    weighed = weigh(problem, latencies)
    if costs:
        weighed = _again(weighed, costs)
    tried = inputs or ()
    if budget.max_drop is not None:
        return accuracy.within(model, weighed.at, budget.max_drop, inputs=tried, judged=judged, data_aware=data_aware, track=track)
    made = weighed.at(1.0)  # within reach, or no stage begins
    if stage.left:
        made = weighed.weakened(made, stage.left)
    if min_agreement is None or not made.layers:
        return made
    said = constraints.said(budget)
    return guard.guarded(model, made, weighed.at, asked=said, inputs=tried, min_agreement=min_agreement, data_aware=data_aware, track=track)


def _again(weighed: Weighed, costs: Costs) -> Weighed:
    """Have what would be chosen measured once more: of many forms those are chosen that came out fast, some of them by chance."""
    p = weighed.problem
    for _ in range(AGAIN):
        if costs.again is None or not costs.again(chosen_forms(p.model, p.stats, weighed.at(1.0), costs.scheme)):
            break
        weighed = weigh(p, priced(p.model, p.stats, p.candidates, costs))
    return weighed
