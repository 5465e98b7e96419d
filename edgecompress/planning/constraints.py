"""Constraints that a budget puts on sums over layers, and the allocation that keeps several of them at once."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgecompress.errors import ConfigError
from edgecompress.planning.allocators import Allocator, Offer
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.latencies import Latencies
from edgecompress.records import Budget, ModelStats
from edgecompress.targets import SCHEMES

MB: Final = 1e6
LAYER_OVERHEAD_BYTES: Final = 500  # names, shapes and scales of a layer take about so much of a file
WEIGHT_ROUNDS: Final = 40  # by then the weights of several constraints have settled
WEIGHT_STEP: Final = 4.0  # step of the logarithm of a weight whose constraint is exceeded by 100%
MAX_REPAIRS: Final = 200  # ends a repair that makes no progress
NEGLIGIBLE_LOSS: Final = 1e-6  # nats; keeps the worth of an exchange finite when it adds no loss
TOLERANCE: Final = 1e-9  # rounding of sums must not exceed a constraint

Values = npt.NDArray[np.float64]


class Constraint(NamedTuple):
    """An upper bound on one additive cost of the whole network.

    Attributes:
        field: Field of `Budget`; "" for a constraint that the user did not ask for.
        name: The constraint in words, e.g. `speed-up 2.5`.
        unit: Unit of `costs`, for messages.
        costs: Layer → cost of each of its candidates.
        dense: Cost of the whole dense network.
        rest: Cost that no choice of candidates changes.
        total: Largest permitted cost of the whole network.
    """

    field: str
    name: str
    unit: str
    costs: Mapping[str, Sequence[float]]
    dense: float
    rest: float
    total: float

    @property
    def layers_total(self) -> float:
        """Largest permitted cost of the layers together."""
        return self.total - self.rest

    @property
    def minimum(self) -> float:
        """Smallest possible cost of the whole network."""
        return self.rest + sum(min(row) for row in self.costs.values())

    def at_fraction(self, fraction: float) -> "Constraint":
        """Return the constraint that asks for a fraction of the savings, from none at 0 to all of the budget at 1."""
        return self._replace(total=self.dense + fraction * (self.total - self.dense)) if fraction < 1 else self


def make_constraints(
    budget: Budget, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], *, latencies: Latencies | None, scheme: str
) -> list[Constraint]:
    """Return the constraints of a budget.

    Args:
        latencies: Latencies of all candidates; without them, a budget's latency and speed-up are left out.
        scheme: Scheme of the file that a size is for.
    """
    made = []
    if budget.macs_ratio is not None:
        macs = {name: [float(c.macs) for c in found] for name, found in candidates.items()}
        rest, total = float(sum(stats.other_macs.values())), float(math.floor(budget.macs_ratio * stats.macs + 1e-6))
        made.append(Constraint("macs_ratio", f"MACs ratio {budget.macs_ratio:g}", "MACs", macs, stats.macs, rest, total))
    if budget.params_ratio is not None:
        params = {name: [float(c.params) for c in found] for name, found in candidates.items()}
        rest, total = float(stats.params - sum(layer.params for layer in stats.layers)), budget.params_ratio * stats.params
        made.append(
            Constraint("params_ratio", f"parameters ratio {budget.params_ratio:g}", "parameters", params, stats.params, rest, total)
        )
    if budget.size_mb is not None:
        made.append(_size_constraint(budget.size_mb, stats, candidates, scheme))
    if latencies is not None:
        if budget.latency_ms is not None:
            name = f"latency {budget.latency_ms:g} ms"
            made.append(_latency_constraint("latency_ms", name, budget.latency_ms, latencies, candidates))
        if budget.speedup is not None:
            total = latencies.network_ms / budget.speedup
            made.append(_latency_constraint("speedup", f"speed-up {budget.speedup:g}", total, latencies, candidates))
    return made


def describe_budget(budget: Budget) -> str:
    """Return a budget in words, e.g. `MACs ratio 0.35 and speed-up 2`."""
    words = {"macs_ratio": "MACs ratio {:g}", "params_ratio": "parameters ratio {:g}", "size_mb": "size {:g} MB"}
    words |= {"latency_ms": "latency {:g} ms", "speedup": "speed-up {:g}", "max_drop": "a drop of {:g} points"}
    return " and ".join(text.format(getattr(budget, name)) for name, text in words.items() if getattr(budget, name) is not None)


def largest_saving(stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], latencies: Latencies | None) -> Constraint:
    """Return the tightest constraint that can be kept: the least latency, or the fewest MACs, that the network can have."""
    if latencies is not None:
        constraint = _latency_constraint("", "all that can be saved", latencies.network_ms, latencies, candidates)
    else:
        macs = {name: [float(c.macs) for c in found] for name, found in candidates.items()}
        rest = float(sum(stats.other_macs.values()))
        constraint = Constraint("", "all that can be saved", "MACs", macs, stats.macs, rest, stats.macs)
    return constraint._replace(total=constraint.minimum)


def stage_budget(budget: Budget, constraints: Sequence[Constraint], fraction: float) -> Budget:
    """Return the budget of a stage that makes a fraction of the budget's savings."""
    at = {each.field: (each.at_fraction(fraction).total, each.dense) for each in constraints if each.field}
    return msgspec.structs.replace(budget, **{field: _budget_value(field, *totals) for field, totals in at.items()})


def _budget_value(field: str, total: float, dense: float) -> float:
    """Return the value of a budget's field that permits a total cost."""
    if field in ("macs_ratio", "params_ratio"):
        return total / max(1, dense)
    return {"size_mb": total / MB, "latency_ms": total, "speedup": dense / max(total, 1e-12)}[field]


def proportional_latency(
    macs_ratio: float, latencies: Latencies, candidates: Mapping[str, Sequence[Candidate]], realised: float
) -> Constraint:
    """Return a latency constraint for a MACs ratio: the fraction `realised` of a speed-up in proportion to the MACs."""
    total = latencies.network_ms * min(1.0, macs_ratio / realised)
    return _latency_constraint("", f"{realised:.0%} of the speed-up the MACs promise", total, latencies, candidates)


def dense_latency(latencies: Latencies, candidates: Mapping[str, Sequence[Candidate]]) -> Constraint:
    """Return the constraint that the network gets no slower than the dense one."""
    return _latency_constraint("", "no slower than the dense network", latencies.network_ms, latencies, candidates)


def allocate_within(allocator: Allocator, offers: Sequence[Sequence[Offer]], constraints: Sequence[Constraint]) -> list[int] | None:
    """Return the index of the chosen offer of each layer, within every constraint; None if no choice is found.

    The allocator solves one constraint itself. Several are combined by weights (surrogate relaxation): a cost is the weighted sum of
    its fractions of the constraints, and weight moves to the constraint that is exceeded most. Choices that still exceed one are repaired
    offer by offer, and of all choices within every constraint, the one with the least loss is returned.

    References:
        F. Glover. Surrogate constraints. Operations Research 16(4), 1968.
        S. Arora, E. Hazan, S. Kale. The multiplicative weights update method. Theory of Computing 8, 2012.
    """
    if len(constraints) == 1:
        return allocator.allocate(_replace_costs(offers, list(constraints[0].costs.values())), constraints[0].layers_total)
    if any(each.layers_total <= 0 for each in constraints):
        return None
    # For each layer `(constraints, offers)`: the fraction of a constraint that an offer uses.
    tables = [np.array([list(each.costs.values())[i] for each in constraints]) for i in range(len(offers))]
    tables = [table / np.array([[each.layers_total] for each in constraints]) for table in tables]
    losses = [np.array([offer.loss for offer in row]) for row in offers]
    weights = np.full(len(constraints), 1 / len(constraints))
    best: list[int] | None = None
    for turn in range(1, WEIGHT_ROUNDS + 1):
        picked = allocator.allocate(_replace_costs(offers, [list(weights @ table) for table in tables]), 1.0)
        if picked is None:
            return best
        used = _used_fractions(tables, picked)
        repaired = _repair(tables, losses, picked)
        if repaired is not None and (best is None or _total_loss(losses, repaired) < _total_loss(losses, best)):
            best = repaired
        weights = weights * np.exp((used - 1) * WEIGHT_STEP / math.sqrt(turn))
        weights = weights / weights.sum()
    return best


def allocate_subset(
    allocator: Allocator, offers: Sequence[Sequence[Offer]], constraints: Sequence[Constraint], kept: Sequence[Sequence[int]]
) -> list[int] | None:
    """Allocate among the offers of each layer whose indices are in `kept`; return indices among all offers."""
    fewer = [[row[i] for i in indices] for row, indices in zip(offers, kept, strict=True)]
    narrowed = [
        each._replace(costs={name: [row[i] for i in indices] for (name, row), indices in zip(each.costs.items(), kept, strict=True)})
        for each in constraints
    ]
    picked = allocate_within(allocator, fewer, narrowed)
    return None if picked is None else [indices[i] for indices, i in zip(kept, picked, strict=True)]


def _repair(tables: Sequence[Values], losses: Sequence[Values], picked: Sequence[int]) -> list[int] | None:
    """Exchange offers until no constraint is exceeded, each time the one that helps most for its loss; None if no exchange helps."""
    now = list(picked)
    for _ in range(MAX_REPAIRS):
        used = _used_fractions(tables, now)
        excess = np.maximum(used - 1 - TOLERANCE, 0).sum()
        if not excess:
            return now
        best = (0.0, 0, 0)
        for i, (table, loss) in enumerate(zip(tables, losses, strict=True)):
            after = used[:, None] - table[:, [now[i]]] + table
            gain = excess - np.maximum(after - 1 - TOLERANCE, 0).sum(axis=0)
            worth = gain / (np.maximum(loss - loss[now[i]], 0) + NEGLIGIBLE_LOSS)
            j = int(np.where(gain > TOLERANCE, worth, 0).argmax())
            best = max(best, (float(worth[j]) if gain[j] > TOLERANCE else 0.0, i, j))
        if not best[0]:
            return None
        now[best[1]] = best[2]
    return None


def _used_fractions(tables: Sequence[Values], picked: Sequence[int]) -> Values:
    """Return the fraction of each constraint that a choice uses."""
    used: Values = np.array([table[:, j] for table, j in zip(tables, picked, strict=True)]).sum(axis=0)
    return used


def _total_loss(losses: Sequence[Values], picked: Sequence[int]) -> float:
    return float(sum(row[j] for row, j in zip(losses, picked, strict=True)))


class UnreachableError(ConfigError):
    """No choice of candidates keeps within a budget.

    Attributes:
        lowest_ratio: The lowest fraction of the MACs that the network reaches, rounded up to hundredths; None for other budgets.
    """

    def __init__(self, message: str, lowest_ratio: float | None = None) -> None:
        super().__init__(message)
        self.lowest_ratio = lowest_ratio


def find_lowest_ratio(constraints: Sequence[Constraint]) -> float | None:
    """Return the lowest MACs ratio that a network reaches, rounded up to hundredths; None where the MACs have no constraint."""
    return next((_round_ratio(each) for each in constraints if each.field == "macs_ratio"), None)


def describe_unreachable(constraints: Sequence[Constraint]) -> str:
    """Return a message that names the constraint out of reach and the nearest value that can be reached."""
    for each in constraints:
        if each.minimum > each.total * (1 + TOLERANCE):
            return f"{each.name}: the lowest this network reaches is {_format_cost(each, each.minimum)}; {_suggest_value(each)}"
    return f"{' and '.join(each.name for each in constraints)}: each alone can be reached, together they were not; ask for less of one"


def _format_cost(constraint: Constraint, cost: float) -> str:
    if constraint.unit == "ms":
        return f"{cost:.3g} ms"
    return f"{cost / MB:.3g} MB" if constraint.unit == "bytes" else f"{cost / max(1, constraint.dense):.3f}"


def _suggest_value(constraint: Constraint) -> str:
    """Return a remedy with a value that can be reached, rounded to the digits that people write."""
    minimum = constraint.minimum
    if constraint.field == "speedup":
        return f"ask for at most {math.floor(100 * constraint.dense / minimum) / 100:.2f}"
    if constraint.unit in ("ms", "bytes"):
        value = minimum if constraint.unit == "ms" else minimum / MB
        digits = 2 - math.floor(math.log10(value))
        return f"ask for at least {math.ceil(value * 10**digits) / 10**digits:g}"
    return f"ask for at least {_round_ratio(constraint):.2f}"


def _round_ratio(constraint: Constraint) -> float:
    return min(1.0, math.ceil(100 * constraint.minimum / max(1, constraint.dense)) / 100)


def _latency_constraint(
    field: str, name: str, total: float, latencies: Latencies, candidates: Mapping[str, Sequence[Candidate]]
) -> Constraint:
    costs = {layer: [latencies.ms_of(layer, c) for c in found] for layer, found in candidates.items()}
    return Constraint(field, name, "ms", costs, latencies.network_ms, latencies.rest_ms, total)


def _size_constraint(size_mb: float, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], scheme: str) -> Constraint:
    """Return the constraint on a file's bytes, estimated from weights and layers; the real file is measured after it is written."""
    costs = {
        name: [
            c.params * SCHEMES[c.scheme or scheme].weight_bytes + LAYER_OVERHEAD_BYTES * (1 if c.method == DENSE else len(c.rank) + 1)
            for c in found
        ]
        for name, found in candidates.items()
    }
    rest = 4.0 * (stats.params - sum(layer.params for layer in stats.layers))
    dense = rest + sum(layer.params * SCHEMES[scheme].weight_bytes + LAYER_OVERHEAD_BYTES for layer in stats.layers)
    return Constraint("size_mb", f"size {size_mb:g} MB", "bytes", costs, dense, rest, size_mb * MB)


def _replace_costs(offers: Sequence[Sequence[Offer]], costs: Sequence[Sequence[float]]) -> list[list[Offer]]:
    return [[offer._replace(cost=c) for offer, c in zip(row, new, strict=True)] for row, new in zip(offers, costs, strict=True)]
