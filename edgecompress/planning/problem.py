"""What a plan is made from: the forms that layers may take, the limits on them, and what is chosen at a share of what the limits save."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.planning import constraints, stages
from edgecompress.planning.allocators import Allocator, Offer, latency, vbmf
from edgecompress.planning.candidates import Candidate
from edgecompress.planning.choices import Choices
from edgecompress.planning.explain import Considered, assembled, nothing_fits
from edgecompress.planning.latencies import Latencies, quickest
from edgecompress.planning.offers import offers
from edgecompress.planning.sensitivity import Losses
from edgecompress.records import Budget, CompressionPlan, ModelStats

REALISED: Final = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # of the speed-up that MACs promise, the most that costs little loss is asked for
LITTLE: Final = 1.25  # times the predicted loss


class Problem(NamedTuple):
    """What is known before latencies are.

    Attributes:
        candidates: Layer → its forms, each in every type that is offered; `choices` is what they come from.
        rounding: Layer → what computing it in integers adds to the loss, where layers may stay in float.
        fixed: Layers whose form was given by hand.
        scheme: That of the files a size is for, and of latencies.
    """

    model: nn.Module
    stats: ModelStats
    budget: Budget
    allocator: str
    chooser: Allocator
    candidates: Mapping[str, Sequence[Candidate]]
    choices: Choices
    losses: Losses
    rounding: Mapping[str, float]
    fixed: frozenset[str]
    stage: stages.Stage
    scheme: str
    notes: tuple[str, ...]


class Weighed(NamedTuple):
    """A problem with latencies: `asked` are all limits, those that latencies add among them."""

    problem: Problem
    considered: Considered
    offered: Sequence[Sequence[Offer]]
    asked: Sequence[constraints.Limit]

    def at(self, share: float, kept: Sequence[Sequence[int]] | None = None) -> CompressionPlan:
        """Return the plan that saves this share of what the limits ask for.

        Args:
            kept: For each layer, which of its candidates may be chosen; all where it is None.

        Raises:
            ConfigError: No choice of candidates keeps within the limits; the message names the nearest that can be.
        """
        p, limits = self.problem, [limit.at(share) for limit in self.asked]
        if kept is None:
            picked = constraints.allocate(p.chooser, self.offered, limits)
        else:
            picked = constraints.allocate_among(p.chooser, self.offered, limits, kept)
        if picked is None:
            raise ConfigError(nothing_fits(self.considered, constraints.said(p.budget)) or constraints.nearest(self.asked))
        return assembled(self.considered, picked, p.budget, p.scheme if self.considered.latencies else "", p.notes)

    def weakened(self, made: CompressionPlan, left: float) -> CompressionPlan:
        """Return a stage's plan, which leaves the share `left` of what the plan `made` saves, and no layer below what it has there."""
        kept = stages.between(self.considered.candidates, made.layers)
        return msgspec.structs.replace(self.at(1 - left, kept), budget=constraints.weakened(made.budget, self.asked, 1 - left))


def weigh(problem: Problem, latencies: Latencies | None) -> Weighed:
    """Leave out what is no faster than the dense layer, where latencies tell, and set the limits.

    Raises:
        ConfigError: A limit is out of reach; the message names the nearest that is not.
    """
    p = problem
    candidates = quickest(p.candidates, latencies, keep=p.fixed | p.stage.present.keys()) if latencies else p.candidates
    dropped = {name: [c for c in found if c not in candidates[name]] for name, found in p.candidates.items()}
    considered = Considered(
        p.stats, candidates, dropped, p.choices, p.losses, p.rounding, latencies, p.fixed, p.allocator, by_loss=p.chooser is latency
    )
    offered = offers(p.model, candidates, p.losses, weakened=p.chooser is vbmf, present=p.stage.present, rounding=p.rounding)
    asked = constraints.limits(p.budget, p.stats, candidates, latencies=latencies, scheme=p.scheme)
    asked = asked or [constraints.all_of_it(p.stats, candidates, latencies)]
    return Weighed(p, considered, offered, [*asked, *_in_step(p, offered, asked, candidates, latencies)])


def _in_step(
    p: Problem,
    offered: Sequence[Sequence[Offer]],
    asked: Sequence[constraints.Limit],
    candidates: Mapping[str, Sequence[Candidate]],
    latencies: Latencies | None,
) -> list[constraints.Limit]:
    """Return the limit on latency, where it is known and no budget is on it: saved MACs are to be saved time, and nothing gets slower."""
    if latencies is None or p.budget.latency_ms is not None or p.budget.speedup is not None:
        return []

    def loss(limits: Sequence[constraints.Limit]) -> float:
        picked = constraints.allocate(p.chooser, offered, limits)
        return math.inf if picked is None else sum(row[i].loss for row, i in zip(offered, picked, strict=True))

    slowest = constraints.no_slower(latencies, candidates)
    alone = loss([*asked, slowest])
    for realised in REALISED if p.budget.macs_ratio is not None else ():
        limit = constraints.in_step(p.budget.macs_ratio or 1.0, latencies, candidates, realised)
        if loss([*asked, limit]) <= LITTLE * alone < math.inf:
            return [limit]
    return [slowest] if alone < math.inf else []
