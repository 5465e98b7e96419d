"""The forms and ranks a layer may take, each with its exact cost and error."""

import copy
import itertools
from fractions import Fraction
from typing import Final, NamedTuple

import torch
from torch import nn

from edgecompress.counting import cost_of
from edgecompress.factorizations import METHODS, factorize, options_of, relative_error
from edgecompress.records import LayerStats
from edgecompress.threads import threads

DENSE: Final = "dense"
GRID: Final = 8  # values a rank axis takes at the most
WORTH: Final = 0.7  # of the dense MACs; a smaller saving goes to the operators added and the maps they write and read
SMALL: Final = 500_000  # weights; above it several threads factorize faster


class Candidate(NamedTuple):
    """One way to hold a layer; `macs` are totals over the layer's calls."""

    method: str
    rank: tuple[int, ...]
    params: int
    macs: int
    relative_error: float


def dense(layer: LayerStats) -> Candidate:
    return Candidate(DENSE, (), layer.params, layer.macs, 0.0)


def one(layer: LayerStats, module: nn.Module, method: str, rank: tuple[int, ...]) -> Candidate:
    """Cost and error of one factorization.

    Raises:
        UnsupportedError: The method cannot take the layer.
        ConfigError: The rank does not fit it.
    """
    compact = factorize(module, method, rank, name=layer.name)
    error = relative_error(module, method, compact)
    params, macs = cost_of(compact.to("meta"), layer.input_shape)
    return Candidate(method, rank, params, round(macs * repeats(layer, module)), error)


def candidates(layer: LayerStats, module: nn.Module, methods: tuple[str, ...], *, multiple: int) -> tuple[list[Candidate], str]:
    """Return the worthwhile candidates, dense last, cheapest first, and why there are none but dense.

    Worthwhile: MACs saved for the layers added, and no other candidate has both fewer MACs and a smaller error.
    """
    reasons = [(METHODS[m].reject(module), m) for m in methods]
    able = [m for reason, m in reasons if reason is None]
    if not able:
        return [dense(layer)], "; ".join(dict.fromkeys(str(reason) for reason, _ in reasons))
    with threads(1 if layer.params < SMALL else 0):
        found = _fitted(layer, module, able, multiple)
    if not found:
        return [dense(layer)], f"no rank of {' and '.join(able)} saves the {1 - WORTH:.0%} of its MACs that pay for the added layers"
    return [*front(found), dense(layer)], ""


def _fitted(layer: LayerStats, module: nn.Module, able: list[str], multiple: int) -> list[Candidate]:
    found = []
    times = repeats(layer, module)
    for method in able:
        limit = METHODS[method].max_rank(module, options_of(method))
        for rank in itertools.product(*(rank_grid(n, multiple) for n in limit)):
            with torch.device("meta"):
                skeleton = METHODS[method].skeleton(module, rank, options_of(method))
            params, macs = cost_of(skeleton, layer.input_shape)
            total = round(macs * times)
            if total <= WORTH * layer.macs:
                found.append((method, rank, params, total))
    return [Candidate(*f, relative_error(module, f[0], factorize(module, f[0], f[1], name=layer.name))) for f in found]


def repeats(layer: LayerStats, module: nn.Module) -> Fraction:
    """Return how many calls of its last size a layer is worth: the number of calls, unless their inputs differ in size."""
    with torch.device("meta"):
        _, single = cost_of(copy.deepcopy(module).to("meta"), layer.input_shape)
    return Fraction(layer.macs, single)


def front(found: list[Candidate]) -> list[Candidate]:
    """Keep those that no cheaper one beats, cheapest first."""
    kept: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.macs, c.relative_error)):
        if not kept or candidate.relative_error < kept[-1].relative_error:
            kept.append(candidate)
    return kept


def rank_grid(limit: int, multiple: int) -> list[int]:
    """Ranks up to `limit`, in the channel multiple that kernels like, finer only where a layer has fewer than four multiples."""
    step = min(multiple, max(1, limit // 4))
    step *= -(-limit // (step * GRID))
    return sorted({*range(step, limit + 1, step), limit})
