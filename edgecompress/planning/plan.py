"""Choose a method and a rank for every layer, so that the budget is kept where the device gains most and the network loses least."""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.options import AUTO, DEFAULT_MACS_RATIO, Choice, check_budget
from edgecompress.planning import accuracy_bounds, constraints, int8_loss, sensitivity, stages
from edgecompress.planning.allocators import get_allocator
from edgecompress.planning.fitted_candidates import find_candidates, methods_to_try
from edgecompress.planning.latencies import DeviceCosts, candidate_latencies, planned_queries
from edgecompress.planning.problem import PlanningProblem, Solution, solve
from edgecompress.progress import Track, track_silently
from edgecompress.records import Budget, CompressionPlan, ModelStats
from edgecompress.records.outputs import OutputSpec
from edgecompress.targets import INT8_STATIC

REMEASURE_ROUNDS: Final = 2  # after two rounds a plan seldom chooses a form that was measured only once


def plan(
    model: nn.Module,
    stats: ModelStats,
    *,
    macs_ratio: float | None = None,
    budget: Budget | None = None,
    costs: DeviceCosts | None = None,
    scheme: str = "int8-static",
    allocator: str = "latency",
    method: str = AUTO,
    options: Mapping[str, Any] | None = None,
    layers: Mapping[str, Choice | tuple[str, tuple[int, ...]]] | None = None,
    inputs: Batch | None = None,
    judged: accuracy_bounds.Judged | tuple[Batch, Tensor | None] | None = None,
    outputs: tuple[OutputSpec, ...] | None = None,
    data_aware: bool = False,
    mixed_precision: bool = False,
    rank_multiple: int = 8,
    guarded: bool = False,
    min_fidelity: float | None = None,
    stage: stages.Stage = stages.SINGLE_STAGE,
    track: Track = track_silently,
) -> CompressionPlan:
    """Return a plan that keeps the network within every given budget, at the least predicted loss.

    Args:
        model: The dense model; left unchanged.
        stats: Result of `analyze` for it.
        budget: Every given field is kept. A latency or speed-up needs `costs`. With `max_drop`, measured on `judged` after BatchNorm
            re-estimation, the plan saves as much as that permits, and no more than the other fields ask for.
        macs_ratio: Short for a budget of this alone; 0.35 if no budget is given.
        costs: Latencies of layers on the device. With them, no layer gets a form slower than its dense one, and MACs are saved where
            that saves time.
        scheme: Scheme of the files that a size is for.
        allocator: One of ALLOCATORS, which divides the budget among the layers.
        method: One of METHODS for every layer, or "auto" to choose the best one in closed form for each layer.
        options: Options of the method, see its `Options`.
        layers: Fixed choices, layer → (method, rank), (method, rank, options) or ("dense", ()); the others share the rest of the budget.
        inputs: Real inputs, a tuple `(x,)` or `(x, y, …)` of tensors `(n, …)`, to measure sensitivities on; without them, a squared
            relative error counts the same in every layer.
        judged: Other real inputs for a budget's `max_drop`, with labels or None, or with a loss of their own.
        outputs: The kinds of the outputs, by which losses are measured; None guesses them from the shapes.
        data_aware: Also fit the factors to `inputs` when measuring, as `decompose` does when it gets inputs.
        mixed_precision: With costs of int8-static files: also choose, jointly with the forms, which layers stay in float, by the measured
            loss of rounding each layer.
        rank_multiple: Ranks are multiples of it where a layer is wide enough.
        guarded: Use this if no training follows: reduce the savings until every output keeps enough of the dense model's, measured on the
            second half of `inputs` after BatchNorm re-estimation on the first.
        min_fidelity: The least that every output of a guarded plan keeps; None for the bounds of the kinds.
        stage: For one of several stages: its starting point and how far it goes. `model` is then the network fine-tuned in the stage
            before, with dense layers, and errors and losses are relative to it.

    Raises:
        ConfigError: An allocator, method, option or layer is unknown, a latency budget has no costs, or no choice of ranks reaches the
            budget; the message names the nearest reachable value.
        UnsupportedError: The method of a fixed choice cannot factorize its layer, or the allocator cannot measure a method.
        ToolchainError: A process that factorized layers died.
        DeviceError: Costs could not be measured.
    """
    budget = check_budget(budget or Budget(macs_ratio=DEFAULT_MACS_RATIO if macs_ratio is None else macs_ratio))
    if costs is None and (budget.latency_ms is not None or budget.speedup is not None):
        needed = constraints.describe_budget(budget)
        raise ConfigError(f"{needed}: latencies belong to a device; give costs measured there, or a MACs ratio")
    chooser = get_allocator(allocator)
    forms = methods_to_try(method, options, measured=costs is not None)
    fixed = {name: Choice(*choice) for name, choice in (layers or {}).items()}
    fitted = find_candidates(model, stats, forms, fixed=fixed, multiple=rank_multiple, current=stage.current, track=track)
    joint = mixed_precision and costs is not None and costs.scheme == INT8_STATIC and inputs is not None
    candidates = int8_loss.add_float_candidates(fitted.candidates) if joint else fitted.candidates
    latencies = candidate_latencies(model, stats, candidates, costs) if costs else None  # fails early, before the losses take minutes
    tried = inputs or ()
    guard = None
    if guarded and budget.max_drop is None:
        guard = accuracy_bounds.FidelityGuard(model, tried, min_fidelity=min_fidelity, specs=outputs, data_aware=data_aware)
    problem = PlanningProblem(
        model=model,
        stats=stats,
        budget=budget,
        allocator=allocator,
        chooser=chooser,
        candidates=candidates,
        fitted=fitted,
        losses=sensitivity.squared_errors(fitted.candidates),
        int8_losses={},
        fixed=frozenset(fixed),
        stage=stage,
        scheme=costs.scheme if costs else scheme,
        notes=() if inputs is not None else ("no data: sensitivities are squared relative errors, every layer weighed the same",),
    )
    asked = constraints.describe_budget(budget)
    if budget.max_drop is None:
        by_errors = solve(problem, latencies)
        if not joint and not (dense := by_errors.plan_at(1.0)).layers:
            return dense  # the budget asks for nothing, so no loss needs to be measured
        if guard is not None and (least := guard.refuses_everything(by_errors.plan_at)) is not None:
            return guard.refuse(least, by_errors.plan_at, asked=asked)
    if inputs is not None:
        affordable = sensitivity.affordable_samples(fitted.candidates, stats.macs)
        few = batches.take_samples(batches.check_batch(inputs, "planning inputs"), slice(affordable))
        losses = sensitivity.measure_losses(model, fitted.candidates, few, specs=outputs, data_aware=data_aware, track=track)
        names = [layer.name for layer in stats.layers] if joint else []
        int8_losses = int8_loss.measure_int8_losses(model, names, few, specs=outputs, track=track) if joint else {}
        problem = problem._replace(losses=losses, int8_losses=int8_losses)
    solution = solve(problem, latencies)
    if costs:
        solution = _remeasure_chosen(solution, costs)
    if budget.max_drop is not None:
        if judged is not None and not isinstance(judged, accuracy_bounds.Judged):
            judged = accuracy_bounds.judge_by_labels(model, *judged, outputs)
        return accuracy_bounds.limit_loss(
            model, solution.plan_at, budget.max_drop, inputs=tried, judged=judged, specs=outputs, data_aware=data_aware, track=track
        )
    full = solution.plan_at(1.0)  # fails if the budget is out of reach, before any stage begins
    if stage.remaining:
        full = solution.stage_plan(full, stage.remaining)
    if guard is None or not full.layers:
        return full
    return guard.keep(full, solution.plan_at, asked=asked, track=track)


def _remeasure_chosen(solution: Solution, costs: DeviceCosts) -> Solution:
    """Measure the chosen forms a second time and solve again: of many forms, some are chosen because they came out fast by chance."""
    p = solution.problem
    for _ in range(REMEASURE_ROUNDS):
        queries = planned_queries(p.model, p.stats, solution.plan_at(1.0), costs.scheme)
        if costs.remeasure is None or not costs.remeasure(queries):
            break
        solution = solve(p, candidate_latencies(p.model, p.stats, p.candidates, costs))
    return solution
