"""Candidates of one layer: the methods and ranks that it may take, each with its exact cost and error."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, factorize, parse_options
from edgecompress.factorizations.blocks.layers import DenseLayer, channels_per_group
from edgecompress.factorizations.methods import tensor_train
from edgecompress.factorizations.parallel import FactorizationJob, measure_errors
from edgecompress.network.counting import cost_of
from edgecompress.progress import Track, track_silently
from edgecompress.records import LayerStats

DENSE: Final = "dense"
MAX_GRID_RANKS: Final = 8  # more values along one rank axis cost fitting time and hardly change a plan
MAX_MACS_FRACTION: Final = 0.7  # a form saving less than 30% of the MACs loses its gain to the added operators and their feature maps
EXACT_ERROR: Final = 1e-6  # factors in fp32 have about this relative error; below it methods differ by rounding only

Rank = tuple[int, ...]
MethodOptions = tuple[str, Mapping[str, Any]]  # method and its options


class Candidate(NamedTuple):
    """One form of a layer: a method and a rank with their costs and errors.

    Attributes:
        macs: Multiply-accumulates of all calls of the layer.
        note: How the fit fell short of the request; "" if it did not.
        scheme: Number format of this layer alone; "" for the network's.
    """

    method: str
    rank: Rank
    params: int
    macs: int
    relative_error: float
    spectral_error: float = math.nan
    options: Mapping[str, Any] = {}
    note: str = ""
    scheme: str = ""


class LayerCandidates(NamedTuple):
    """The candidates of a layer before they are fitted, and the reason if it has none."""

    layer: LayerStats
    module: nn.Module
    found: list[Candidate]
    reason: str


def dense_candidate(layer: LayerStats) -> Candidate:
    """Return the candidate that leaves a layer dense."""
    return Candidate(DENSE, (), layer.params, layer.macs, 0.0, 0.0)


def fixed_candidate(layer: LayerStats, module: nn.Module, method: str, rank: Rank, options: Mapping[str, Any]) -> LayerCandidates:
    """Return a layer with one candidate, the requested one; a tensor train gets the run mode that is measured faster on this machine.

    Raises:
        UnsupportedError: The method cannot factorize the layer.
        ConfigError: The rank or an option does not fit the layer.
    """
    compact = factorize(module, method, rank, name=layer.name, options=options, fit=False)
    if METHODS[method] is tensor_train and "run" not in options:
        chosen = parse_options(method, options)
        mode = tensor_train.faster_run_mode(cast(DenseLayer, module), rank, layer.input_shape, options=chosen, name=layer.name)
        options = {**options, "run": mode}
        compact = factorize(module, method, rank, name=layer.name, options=options, fit=False)
    params, macs = cost_of(compact.to("meta"), layer.input_shape)
    candidate = Candidate(method, rank, params, round(macs * effective_calls(layer, module)), math.nan, options=options)
    return LayerCandidates(layer, module, [candidate], "")


def worthwhile_candidates(layer: LayerStats, module: nn.Module, forms: Sequence[MethodOptions], *, multiple: int) -> LayerCandidates:
    """Return a layer with the candidates that save enough MACs to pay for the layers they add, or the reason why it has none."""
    if reason := _missing_values_reason(module):
        return LayerCandidates(layer, module, [], reason)
    found, able, reasons = [], [], []
    calls = effective_calls(layer, module)
    for method, options in forms:
        limit = _max_rank(module, method, options)
        if isinstance(limit, str):
            reasons.append(limit)
            continue
        able.append(method)

        def worthwhile(rank: Rank, form: MethodOptions = (method, options)) -> Candidate | None:
            candidate = _count_costs(layer, module, form, rank, calls)
            return candidate if candidate.macs <= MAX_MACS_FRACTION * layer.macs else None

        narrow = min(channels_per_group(cast(DenseLayer, module)))
        grid = candidate_ranks(limit, multiple, narrow=narrow, pays=lambda rank: worthwhile(rank) is not None)
        found += [candidate for rank in grid if (candidate := worthwhile(rank))]
    if able and not found:
        reasons = [f"no rank of {' and '.join(able)} saves the {1 - MAX_MACS_FRACTION:.0%} of its MACs that pay for the added layers"]
    return LayerCandidates(layer, module, found, "" if found else "; ".join(dict.fromkeys(reasons)))


def fit_candidates(layers: Sequence[LayerCandidates], *, track: Track = track_silently) -> list[list[Candidate]]:
    """Fit the candidates of all layers at once and return those of each layer with their errors, in the same order."""
    jobs = [FactorizationJob(each.layer.name, each.module, c.method, c.rank, dict(c.options)) for each in layers for c in each.found]
    fits = iter(measure_errors(jobs, track=track))
    return [[c._replace(**fit._asdict()) for c in each.found for fit in [next(fits)]] for each in layers]


def _max_rank(module: nn.Module, method: str, options: Mapping[str, Any]) -> Rank | str:
    """Return the largest rank of a method for this layer, or the reason why the method cannot factorize the layer."""
    try:
        return METHODS[method].reject(module) or METHODS[method].max_rank(module, parse_options(method, options))
    except ConfigError as error:  # an option that fits other layers of the network
        return str(error)


def _count_costs(layer: LayerStats, module: nn.Module, form: MethodOptions, rank: Rank, calls: Fraction) -> Candidate:
    """Return a candidate with parameters and MACs, counted on unfitted layers."""
    method, options = form
    with torch.device("meta"):
        skeleton = METHODS[method].skeleton(module, rank, parse_options(method, options))
    params, macs = cost_of(skeleton, layer.input_shape)
    return Candidate(method, rank, params, round(macs * calls), math.nan, options=options)


def _missing_values_reason(module: nn.Module) -> str:
    """Return why a layer's weight cannot be planned with, "" if it can; `factorize` raises an error for such a weight."""
    weight = cast(Tensor, module.weight)
    if weight.is_meta:
        return "it is on the meta device and has no values"
    if not weight.is_floating_point():
        return f"its weights are {str(weight.dtype).removeprefix('torch.')}"
    return "" if bool(weight.any()) else "its weights are all zero"


def effective_calls(layer: LayerStats, module: nn.Module) -> Fraction:
    """Return a layer's MACs in units of one call on its last input: the number of calls, unless their inputs differ in size."""
    with torch.device("meta"):
        _, single = cost_of(copy.deepcopy(module).to("meta"), layer.input_shape)
    return Fraction(layer.macs, single)


def pareto_front(found: list[Candidate]) -> list[Candidate]:
    """Return the candidates that no cheaper one beats, cheapest first; of those exact but for rounding, only the cheapest."""
    kept: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.macs, c.relative_error)):
        if not kept or (candidate.relative_error < kept[-1].relative_error and kept[-1].relative_error > EXACT_ERROR):
            kept.append(candidate)
    return kept


def candidate_ranks(limit: Rank, multiple: int, *, narrow: int, pays: Callable[[Rank], bool]) -> Iterable[Rank]:
    """Return the ranks up to `limit` to try: a grid for one or two channel counts, else points on one line up to the last that `pays`.

    A rank that is not a channel count has a limit far above any that saves something, and a grid over three axes or more has too many
    points. On the line all numbers of the rank take the same fraction of their limits.

    Args:
        narrow: The smaller of the layer's input and output channels.
        pays: Whether a rank saves enough; if one does not, no higher one may.
    """
    if len(limit) == 2 or (len(limit) == 1 and limit[0] <= narrow):
        return itertools.product(*(rank_grid(n, multiple) for n in limit))
    longest = max(limit)

    def rank_at(t: int) -> Rank:
        return tuple(_round_down(max(1, n * t // longest), n, multiple) for n in limit)

    low, high = 0, longest  # invariant: rank_at(low) pays, or low is 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pays(rank_at(middle)) else (low, middle - 1)
    return dict.fromkeys(rank_at(t) for t in rank_grid(_round_down(low, low, multiple), multiple)) if low else ()


def _round_down(r: int, limit: int, multiple: int) -> int:
    """Round a rank down to the multiple, unless its limit is below four multiples."""
    return max(multiple, r // multiple * multiple) if limit >= 4 * multiple else r


def rank_grid(limit: int, multiple: int) -> list[int]:
    """Return ranks up to `limit` in steps of the channel multiple that kernels prefer, finer only where fewer than four multiples fit."""
    step = min(multiple, max(1, limit // 4))
    step *= -(-limit // (step * MAX_GRID_RANKS))
    return sorted({*range(step, limit + 1, step), limit})
