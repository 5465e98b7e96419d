"""Choose a form and a rank for every layer, so that the budget is spent where the device gains and the network notices it least."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from torch import Tensor, nn

from edgecompress import batches
from edgecompress.allocators import Allocator, Offer, allocator_named, latency, vbmf
from edgecompress.batches import Batch
from edgecompress.errors import ConfigError
from edgecompress.options import AUTO, MACS_RATIO, Choice, check_budget
from edgecompress.planning import accuracy, budgets, dtypes, guard, sensitivity, stages
from edgecompress.planning.candidates import Candidate
from edgecompress.planning.choices import candidates_of, forms_of
from edgecompress.planning.explain import Considered, assembled, nothing_fits
from edgecompress.planning.latencies import Costs, Latencies, chosen_forms, priced, quickest
from edgecompress.planning.offers import offers
from edgecompress.progress import Track, silent
from edgecompress.records import Budget, CompressionPlan, ModelStats

REALISED: Final = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # of the speed-up that MACs promise, the most that costs little loss is asked for
LITTLE: Final = 1.25  # times the predicted loss
AGAIN: Final = 2  # times that what a plan chose is measured once more, and the plan made anew


class Weighed(NamedTuple):
    """What can be chosen from, the limits on it, and what is chosen at a share of what they save."""

    candidates: Mapping[str, Sequence[Candidate]]
    asked: Sequence[budgets.Limit]
    at: Callable[..., CompressionPlan]


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
    budget = check_budget(budget or Budget(macs_ratio=MACS_RATIO if macs_ratio is None else macs_ratio))
    if costs is None and (budget.latency_ms is not None or budget.speedup is not None):
        raise ConfigError(f"{budgets.said(budget)}: milliseconds are a device's; give costs measured there, or a MACs ratio")
    chooser = allocator_named(allocator)
    forms = forms_of(method, options, measured=costs is not None)
    fixed = {name: Choice(*choice) for name, choice in (layers or {}).items()}
    choices = candidates_of(model, stats, forms, fixed=fixed, multiple=rank_multiple, present=stage.present, track=track)
    joint = mixed_precision and costs is not None and costs.scheme == dtypes.JOINT and inputs is not None
    everything = dtypes.with_float(choices.candidates) if joint else choices.candidates
    latencies = priced(model, stats, everything, costs) if costs else None
    if inputs is None:
        losses = sensitivity.without_data(choices.candidates)
    else:
        few = batches.take(batches.check(inputs, "planning inputs"), slice(sensitivity.affordable(choices.candidates, stats.macs)))
        losses = sensitivity.measure(model, choices.candidates, few, data_aware=data_aware, track=track)
    rounding = dtypes.rounding_losses(model, [layer.name for layer in stats.layers], few, track=track) if joint else {}
    notes = () if inputs is not None else ("no data: sensitivities are squared relative errors, every layer weighed the same",)

    def weigh(latencies: Latencies | None) -> Weighed:
        candidates = quickest(everything, latencies, keep=fixed.keys() | stage.present.keys()) if latencies else everything
        offered = offers(model, candidates, losses, weakened=chooser is vbmf, present=stage.present, rounding=rounding)
        dropped = {name: [c for c in found if c not in candidates[name]] for name, found in everything.items()}
        considered = Considered(
            stats, candidates, dropped, choices, losses, rounding, latencies, frozenset(fixed), allocator, by_loss=chooser is latency
        )
        asked = budgets.limits(budget, stats, candidates, latencies=latencies, scheme=costs.scheme if costs else scheme)
        asked = asked or [budgets.all_of_it(stats, candidates, latencies)]
        asked += _in_step(chooser, offered, asked, budget, candidates, latencies)

        def at(share: float, kept: Sequence[Sequence[int]] | None = None) -> CompressionPlan:
            limits = [limit.at(share) for limit in asked]
            picked = budgets.allocate(chooser, offered, limits) if kept is None else budgets.allocate_among(chooser, offered, limits, kept)
            if picked is None:
                raise ConfigError(nothing_fits(considered, budgets.said(budget)) or budgets.nearest(asked))
            return assembled(considered, picked, budget, costs.scheme if costs else "", notes)

        return Weighed(candidates, asked, at)

    candidates, asked, at = weigh(latencies)
    for _ in range(AGAIN):
        if costs is None or costs.again is None or not costs.again(chosen_forms(model, stats, at(1.0), costs.scheme)):
            break
        candidates, asked, at = weigh(priced(model, stats, everything, costs))

    if budget.max_drop is not None:
        return accuracy.within(model, at, budget.max_drop, inputs=inputs or (), judged=judged, data_aware=data_aware, track=track)
    made = at(1.0)  # within reach, or no stage begins
    if stage.left:
        kept = stages.between(candidates, made.layers)
        made = msgspec.structs.replace(at(1 - stage.left, kept), budget=budgets.weakened(budget, asked, 1 - stage.left))
    if min_agreement is None or not made.layers:
        return made
    return guard.guarded(
        model, made, at, asked=budgets.said(budget), inputs=inputs or (), min_agreement=min_agreement, data_aware=data_aware, track=track
    )


def _in_step(
    chooser: Allocator,
    offered: Sequence[Sequence[Offer]],
    asked: Sequence[budgets.Limit],
    budget: Budget,
    candidates: Mapping[str, Sequence[Candidate]],
    latencies: Latencies | None,
) -> list[budgets.Limit]:
    """Return the limit on latency, where it is known and no budget is on it: saved MACs are to be saved time, and nothing gets slower."""
    if latencies is None or budget.latency_ms is not None or budget.speedup is not None:
        return []

    def loss(limits: Sequence[budgets.Limit]) -> float:
        picked = budgets.allocate(chooser, offered, limits)
        return math.inf if picked is None else sum(row[i].loss for row, i in zip(offered, picked, strict=True))

    slowest = budgets.no_slower(latencies, candidates)
    alone = loss([*asked, slowest])
    for realised in REALISED if budget.macs_ratio is not None else ():
        limit = budgets.in_step(budget.macs_ratio or 1.0, latencies, candidates, realised)
        if loss([*asked, limit]) <= LITTLE * alone < math.inf:
            return [limit]
    return [slowest] if alone < math.inf else []
