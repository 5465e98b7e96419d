"""The allocation problem of one plan: candidates, constraints, and the solution at a fraction of the budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from torch import nn

from edgecompress.planning import constraints, stages
from edgecompress.planning.allocators import Allocator, Offer, latency, vbmf
from edgecompress.planning.candidates import Candidate
from edgecompress.planning.constraints import Constraint, UnreachableError
from edgecompress.planning.explain import Candidates, assemble_plan, infeasible_reason
from edgecompress.planning.fitted_candidates import FittedCandidates
from edgecompress.planning.latencies import Latencies, drop_slow_candidates
from edgecompress.planning.offers import make_offers
from edgecompress.planning.sensitivity import Losses
from edgecompress.records import Budget, CompressionPlan, ModelStats

# A MACs budget asks for the largest of these fractions of a proportional speed-up that costs little loss; a device rarely realises it all.
REALISED_FRACTIONS: Final = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
MAX_LOSS_RATIO: Final = 1.25  # predicted losses are not more exact than this factor, so a smaller rise counts as little


class PlanningProblem(NamedTuple):
    """The part of a plan's allocation problem that does not depend on latencies.

    Attributes:
        allocator: Name of the allocator; `chooser` is the allocator itself.
        candidates: Layer → its forms, each in every scheme that it may have.
        fitted: The fitted candidates that these come from.
        int8_losses: Layer → loss increase of computing it in int8, if layers may stay in float.
        fixed: Layers whose form was fixed by hand.
        scheme: Scheme of the files that sizes and latencies are for.
    """

    model: nn.Module
    stats: ModelStats
    budget: Budget
    allocator: str
    chooser: Allocator
    candidates: Mapping[str, Sequence[Candidate]]
    fitted: FittedCandidates
    losses: Losses
    int8_losses: Mapping[str, float]
    fixed: frozenset[str]
    stage: stages.Stage
    scheme: str
    notes: tuple[str, ...]


class Solution(NamedTuple):
    """A problem with its latencies, and its solution at any fraction of the budget.

    Attributes:
        constraints: The constraints of the budget, and those that latencies add.
    """

    problem: PlanningProblem
    candidates: Candidates
    offers: Sequence[Sequence[Offer]]
    constraints: Sequence[Constraint]

    def plan_at(self, fraction: float, kept: Sequence[Sequence[int]] | None = None) -> CompressionPlan:
        """Return the plan that makes a fraction of the savings that the constraints ask for.

        Args:
            kept: For each layer, the indices of the candidates that may be chosen; None for all.

        Raises:
            UnreachableError: No choice of candidates keeps within the constraints; the message names the nearest reachable value.
        """
        p, limits = self.problem, [each.at_fraction(fraction) for each in self.constraints]
        if kept is None:
            picked = constraints.allocate_within(p.chooser, self.offers, limits)
        else:
            picked = constraints.allocate_subset(p.chooser, self.offers, limits, kept)
        if picked is None:
            asked = constraints.describe_budget(p.budget)
            reason = infeasible_reason(self.candidates, asked) or constraints.describe_unreachable(self.constraints)
            raise UnreachableError(reason, constraints.find_lowest_ratio(self.constraints))
        return assemble_plan(self.candidates, picked, p.budget, p.scheme if self.candidates.latencies else "", p.notes)

    def stage_plan(self, final: CompressionPlan, remaining: float) -> CompressionPlan:
        """Return a stage's plan, which leaves a fraction `remaining` of the savings of `final` to later stages.

        No layer gets a lower rank than in `final`.
        """
        kept = stages.reachable_ranks(self.candidates.candidates, final.layers)
        budget = constraints.stage_budget(final.budget, self.constraints, 1 - remaining)
        return msgspec.structs.replace(self.plan_at(1 - remaining, kept), budget=budget)


def solve(problem: PlanningProblem, latencies: Latencies | None) -> Solution:
    """Return the solution of a problem: drop the candidates no faster than the dense layer, and set the constraints."""
    p = problem
    candidates = drop_slow_candidates(p.candidates, latencies, keep=p.fixed | p.stage.current.keys()) if latencies else p.candidates
    dropped = {name: [c for c in found if c not in candidates[name]] for name, found in p.candidates.items()}
    known = Candidates(
        p.stats, candidates, dropped, p.fitted, p.losses, p.int8_losses, latencies, p.fixed, p.allocator, by_loss=p.chooser is latency
    )
    offers = make_offers(p.model, candidates, p.losses, weakening=p.chooser is vbmf, current=p.stage.current, int8_losses=p.int8_losses)
    asked = constraints.make_constraints(p.budget, p.stats, candidates, latencies=latencies, scheme=p.scheme)
    asked = asked or [constraints.largest_saving(p.stats, candidates, latencies)]
    return Solution(p, known, offers, [*asked, *_implied_latency(p, offers, asked, candidates, latencies)])


def _implied_latency(
    p: PlanningProblem,
    offers: Sequence[Sequence[Offer]],
    asked: Sequence[Constraint],
    candidates: Mapping[str, Sequence[Candidate]],
    latencies: Latencies | None,
) -> list[Constraint]:
    """Return the latency constraint for a budget without one: saved MACs should save time, and the network must not get slower."""
    if latencies is None or p.budget.latency_ms is not None or p.budget.speedup is not None:
        return []

    def least_loss(limits: Sequence[Constraint]) -> float:
        picked = constraints.allocate_within(p.chooser, offers, limits)
        return math.inf if picked is None else sum(row[i].loss for row, i in zip(offers, picked, strict=True))

    slowest = constraints.dense_latency(latencies, candidates)
    alone = least_loss([*asked, slowest])
    for realised in REALISED_FRACTIONS if p.budget.macs_ratio is not None else ():
        limit = constraints.proportional_latency(p.budget.macs_ratio or 1.0, latencies, candidates, realised)
        if least_loss([*asked, limit]) <= MAX_LOSS_RATIO * alone < math.inf:
            return [limit]
    return [slowest] if alone < math.inf else []
