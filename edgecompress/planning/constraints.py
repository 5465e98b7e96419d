"""Budgets as people think of them, as limits on sums over layers; and the allocation that keeps several at once."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgecompress.planning.allocators import Allocator, Offer
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.latencies import Latencies
from edgecompress.records import Budget, ModelStats

MB: Final = 1e6
WEIGHT_BYTES: Final = {"fp32": 4.0, "fp16": 2.0, "int8-dynamic": 1.0, "int8-static": 1.0, "int16x8": 1.0, "int4-weights": 0.5}
OP_BYTES: Final = 500  # of a file for every layer: names, shapes, scales
ROUNDS: Final = 40  # of weights, when there are several limits
STEP: Final = 4.0  # of their logarithms, for a limit exceeded by 100%
MENDS: Final = 200
CHEAP: Final = 1e-6  # nats, below which a loss does not count
SLACK: Final = 1e-9

Values = npt.NDArray[np.float64]


class Limit(NamedTuple):
    """One budget over all layers.

    Attributes:
        field: Of `Budget`; "" for one that nobody asked for.
        name: As it was asked for, e.g. `speed-up 2.5`.
        unit: Of `costs`, for messages.
        costs: Layer → cost of each candidate.
        dense: Cost of the whole dense network; `rest` is what no choice changes.
        total: What the whole network may cost.
    """

    field: str
    name: str
    unit: str
    costs: Mapping[str, Sequence[float]]
    dense: float
    rest: float
    total: float

    @property
    def allowed(self) -> float:
        """What the layers may cost together."""
        return self.total - self.rest

    @property
    def floor(self) -> float:
        """The least the whole network can cost."""
        return self.rest + sum(min(row) for row in self.costs.values())

    def at(self, share: float) -> "Limit":
        """Return the limit that goes this share of the way from the dense network's cost to the budget."""
        return self._replace(total=self.dense + share * (self.total - self.dense)) if share < 1 else self


def limits(
    budget: Budget, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], *, latencies: Latencies | None, scheme: str
) -> list[Limit]:
    """Return the limits of a budget, on candidates that all have a latency where one is asked for."""
    made = []
    if budget.macs_ratio is not None:
        macs = {name: [float(c.macs) for c in found] for name, found in candidates.items()}
        total = float(math.floor(budget.macs_ratio * stats.macs + 1e-6))
        made.append(Limit("macs_ratio", f"MACs ratio {budget.macs_ratio:g}", "MACs", macs, stats.macs, 0.0, total))
    if budget.params_ratio is not None:
        params = {name: [float(c.params) for c in found] for name, found in candidates.items()}
        rest, total = float(stats.params - sum(layer.params for layer in stats.layers)), budget.params_ratio * stats.params
        made.append(Limit("params_ratio", f"parameters ratio {budget.params_ratio:g}", "parameters", params, stats.params, rest, total))
    if budget.size_mb is not None:
        made.append(_size(budget.size_mb, stats, candidates, scheme))
    if latencies is not None:
        if budget.latency_ms is not None:
            made.append(_latency("latency_ms", f"latency {budget.latency_ms:g} ms", budget.latency_ms, latencies, candidates))
        if budget.speedup is not None:
            total = latencies.whole_ms / budget.speedup
            made.append(_latency("speedup", f"speed-up {budget.speedup:g}", total, latencies, candidates))
    return made


def said(budget: Budget) -> str:
    """Name a budget in a message."""
    words = {"macs_ratio": "MACs ratio {:g}", "params_ratio": "parameters ratio {:g}", "size_mb": "size {:g} MB"}
    words |= {"latency_ms": "latency {:g} ms", "speedup": "speed-up {:g}", "max_drop": "a drop of {:g} points"}
    return " and ".join(text.format(getattr(budget, name)) for name, text in words.items() if getattr(budget, name) is not None)


def all_of_it(stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], latencies: Latencies | None) -> Limit:
    """Return the limit that nothing is below: the least milliseconds, or MACs, that the network can have."""
    if latencies is not None:
        limit = _latency("", "all that can be saved", latencies.whole_ms, latencies, candidates)
    else:
        macs = {name: [float(c.macs) for c in found] for name, found in candidates.items()}
        limit = Limit("", "all that can be saved", "MACs", macs, stats.macs, 0.0, stats.macs)
    return limit._replace(total=limit.floor)


def weakened(budget: Budget, made: Sequence[Limit], share: float) -> Budget:
    """Return the budget of a stage that goes a share of the way from the dense network's cost."""
    at = {limit.field: (limit.at(share).total, limit.dense) for limit in made if limit.field}
    return msgspec.structs.replace(budget, **{field: _asked(field, *totals) for field, totals in at.items()})


def _asked(field: str, total: float, dense: float) -> float:
    """Return the value of a budget's field that stands for a total."""
    if field in ("macs_ratio", "params_ratio"):
        return total / max(1, dense)
    return {"size_mb": total / MB, "latency_ms": total, "speedup": dense / max(total, 1e-12)}[field]


def in_step(macs_ratio: float, latencies: Latencies, candidates: Mapping[str, Sequence[Candidate]], realised: float) -> Limit:
    """Return the limit on latency that goes with one on MACs: of the speed-up the MACs promise, the share `realised`."""
    total = latencies.whole_ms * min(1.0, macs_ratio / realised)
    return _latency("", f"{realised:.0%} of the speed-up the MACs promise", total, latencies, candidates)


def no_slower(latencies: Latencies, candidates: Mapping[str, Sequence[Candidate]]) -> Limit:
    """Return the limit that no plan exceeds without being asked to: the dense network's own latency."""
    return _latency("", "no slower than the dense network", latencies.whole_ms, latencies, candidates)


def allocate(chooser: Allocator, offers: Sequence[Sequence[Offer]], limits: Sequence[Limit]) -> list[int] | None:
    """Return the index of the chosen offer of each layer, within every limit; None when nothing is found to be.

    One limit is the allocator's own problem. Several are made one by weights (surrogate relaxation): a cost is the weighted sum of what it
    takes of each limit, and weight moves to the limit that is exceeded most. What still exceeds one is mended offer by offer, and of all
    that is within every limit the least loss is taken.

    References:
        F. Glover. Surrogate constraints. Operations Research 16(4), 1968.
        S. Arora, E. Hazan, S. Kale. The multiplicative weights update method. Theory of Computing 8, 2012.
    """
    if len(limits) == 1:
        return chooser.allocate(_priced(offers, list(limits[0].costs.values())), limits[0].allowed)
    if any(limit.allowed <= 0 for limit in limits):
        return None
    # (limits, offers) of each layer: what an offer takes of each limit
    shares = [np.array([list(limit.costs.values())[i] for limit in limits]) for i in range(len(offers))]
    shares = [table / np.array([[limit.allowed] for limit in limits]) for table in shares]
    losses = [np.array([offer.loss for offer in row]) for row in offers]
    weights = np.full(len(limits), 1 / len(limits))
    best: list[int] | None = None
    for turn in range(1, ROUNDS + 1):
        picked = chooser.allocate(_priced(offers, [list(weights @ table) for table in shares]), 1.0)
        if picked is None:
            return best
        used = _used(shares, picked)
        mended = _mended(shares, losses, picked)
        if mended is not None and (best is None or _total(losses, mended) < _total(losses, best)):
            best = mended
        weights = weights * np.exp((used - 1) * STEP / math.sqrt(turn))
        weights = weights / weights.sum()
    return best


def allocate_among(
    chooser: Allocator, offers: Sequence[Sequence[Offer]], limits: Sequence[Limit], kept: Sequence[Sequence[int]]
) -> list[int] | None:
    """Allocate among those offers of each layer whose indices are kept; return indices among all."""
    fewer = [[row[i] for i in indices] for row, indices in zip(offers, kept, strict=True)]
    narrowed = [
        limit._replace(costs={name: [row[i] for i in indices] for (name, row), indices in zip(limit.costs.items(), kept, strict=True)})
        for limit in limits
    ]
    picked = allocate(chooser, fewer, narrowed)
    return None if picked is None else [indices[i] for indices, i in zip(kept, picked, strict=True)]


def _mended(shares: Sequence[Values], losses: Sequence[Values], picked: Sequence[int]) -> list[int] | None:
    """Exchange offers one by one until no limit is exceeded, each time the one that mends most for its loss; None where none mends."""
    now = list(picked)
    for _ in range(MENDS):
        used = _used(shares, now)
        over = np.maximum(used - 1 - SLACK, 0).sum()
        if not over:
            return now
        best = (0.0, 0, 0)
        for i, (table, loss) in enumerate(zip(shares, losses, strict=True)):
            after = used[:, None] - table[:, [now[i]]] + table
            mends = over - np.maximum(after - 1 - SLACK, 0).sum(axis=0)
            worth = mends / (np.maximum(loss - loss[now[i]], 0) + CHEAP)
            j = int(np.where(mends > SLACK, worth, 0).argmax())
            best = max(best, (float(worth[j]) if mends[j] > SLACK else 0.0, i, j))
        if not best[0]:
            return None
        now[best[1]] = best[2]
    return None


def _used(shares: Sequence[Values], picked: Sequence[int]) -> Values:
    used: Values = np.array([table[:, j] for table, j in zip(shares, picked, strict=True)]).sum(axis=0)
    return used


def _total(losses: Sequence[Values], picked: Sequence[int]) -> float:
    return float(sum(row[j] for row, j in zip(losses, picked, strict=True)))


def nearest(limits: Sequence[Limit]) -> str:
    """Say which limit is out of reach, and what could be asked for instead."""
    for limit in limits:
        if limit.floor > limit.total * (1 + SLACK):
            return f"{limit.name}: the lowest this network reaches is {_said(limit, limit.floor)}; {_instead(limit)}"
    return f"{' and '.join(limit.name for limit in limits)}: each alone can be reached, together they were not; ask for less of one"


def _said(limit: Limit, cost: float) -> str:
    if limit.unit == "ms":
        return f"{cost:.3g} ms"
    return f"{cost / MB:.3g} MB" if limit.unit == "bytes" else f"{cost / max(1, limit.dense):.3f}"


def _instead(limit: Limit) -> str:
    """Return a value that can be reached, rounded to what people write."""
    floor = limit.floor
    if limit.field == "speedup":
        return f"ask for at most {math.floor(100 * limit.dense / floor) / 100:.2f}"
    if limit.unit in ("ms", "bytes"):
        value = floor if limit.unit == "ms" else floor / MB
        digits = 2 - math.floor(math.log10(value))
        return f"ask for at least {math.ceil(value * 10**digits) / 10**digits:g}"
    return f"ask for at least {min(1.0, math.ceil(100 * floor / max(1, limit.dense)) / 100):.2f}"


def _latency(field: str, name: str, total: float, latencies: Latencies, candidates: Mapping[str, Sequence[Candidate]]) -> Limit:
    costs = {layer: [latencies.of(layer, c) for c in found] for layer, found in candidates.items()}
    return Limit(field, name, "ms", costs, latencies.whole_ms, latencies.rest_ms, total)


def _size(asked_mb: float, stats: ModelStats, candidates: Mapping[str, Sequence[Candidate]], scheme: str) -> Limit:
    """Return the limit on the file's bytes, as weights of a scheme and what each op adds take them; a file is measured after it is made."""
    costs = {
        name: [c.params * WEIGHT_BYTES[c.scheme or scheme] + OP_BYTES * (1 if c.method == DENSE else len(c.rank) + 1) for c in found]
        for name, found in candidates.items()
    }
    rest = 4.0 * (stats.params - sum(layer.params for layer in stats.layers))
    dense = rest + sum(layer.params * WEIGHT_BYTES[scheme] + OP_BYTES for layer in stats.layers)
    return Limit("size_mb", f"size {asked_mb:g} MB", "bytes", costs, dense, rest, asked_mb * MB)


def _priced(offers: Sequence[Sequence[Offer]], costs: Sequence[Sequence[float]]) -> list[list[Offer]]:
    return [[offer._replace(cost=c) for offer, c in zip(row, priced, strict=True)] for row, priced in zip(offers, costs, strict=True)]
