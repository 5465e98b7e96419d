"""The forms and ranks a layer may take, each with its exact cost and error."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, factorize, options_of, tensor_train
from edgecompress.factorizations.blocks.layers import Layer, channels
from edgecompress.factorizations.parallel import Job, measure_all
from edgecompress.network.counting import cost_of
from edgecompress.progress import Track, silent
from edgecompress.records import LayerStats

DENSE: Final = "dense"
GRID: Final = 8  # values a rank axis takes at the most
WORTH: Final = 0.7  # of the dense MACs; a smaller saving goes to the operators added and the maps they write and read
ROUNDING: Final = 1e-6  # relative error that factors in fp32 have, at the order of which methods differ by chance

Rank = tuple[int, ...]
Form = tuple[str, Mapping[str, Any]]  # method and options


class Candidate(NamedTuple):
    """One way to hold a layer; `macs` are totals over the layer's calls, `note` says what its fit did less than well.

    `scheme` is "" for the network's own, else that of this layer alone.
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


class Range(NamedTuple):
    """What may become of a layer: its candidates before they are fitted, and why there are none."""

    layer: LayerStats
    module: nn.Module
    found: list[Candidate]
    reason: str


def dense(layer: LayerStats) -> Candidate:
    return Candidate(DENSE, (), layer.params, layer.macs, 0.0, 0.0)


def one(layer: LayerStats, module: nn.Module, method: str, rank: Rank, options: Mapping[str, Any]) -> Range:
    """Return a layer with the one factorization it is to have; a tensor train runs as whichever form of it is measured faster here.

    Raises:
        UnsupportedError: The method cannot take the layer.
        ConfigError: The rank or an option does not fit it.
    """
    compact = factorize(module, method, rank, name=layer.name, options=options, fit=False)
    if METHODS[method] is tensor_train and "run" not in options:
        chosen = options_of(method, options)
        options = {**options, "run": tensor_train.faster(cast(Layer, module), rank, layer.input_shape, options=chosen, name=layer.name)}
        compact = factorize(module, method, rank, name=layer.name, options=options, fit=False)
    params, macs = cost_of(compact.to("meta"), layer.input_shape)
    return Range(layer, module, [Candidate(method, rank, params, round(macs * repeats(layer, module)), math.nan, options=options)], "")


def worthwhile(layer: LayerStats, module: nn.Module, forms: Sequence[Form], *, multiple: int) -> Range:
    """Return a layer with the factorizations that save MACs enough for the layers they add, and why there are none."""
    if reason := _without_values(module):
        return Range(layer, module, [], reason)
    found, able, reasons = [], [], []
    times = repeats(layer, module)
    for method, options in forms:
        limit = _limit(module, method, options)
        if isinstance(limit, str):
            reasons.append(limit)
            continue
        able.append(method)

        def priced(rank: Rank, form: Form = (method, options)) -> Candidate | None:
            candidate = _priced(layer, module, form, rank, times)
            return candidate if candidate.macs <= WORTH * layer.macs else None

        grid = ranks(limit, multiple, narrow=min(channels(cast(Layer, module))), pays=lambda rank: priced(rank) is not None)
        found += [candidate for rank in grid if (candidate := priced(rank))]
    if able and not found:
        reasons = [f"no rank of {' and '.join(able)} saves the {1 - WORTH:.0%} of its MACs that pay for the added layers"]
    return Range(layer, module, found, "" if found else "; ".join(dict.fromkeys(reasons)))


def fitted(ranges: Sequence[Range], *, track: Track = silent) -> list[list[Candidate]]:
    """Fit every candidate, of all layers at once, and return them with their errors, those of each layer in the order they came in."""
    jobs = [Job(r.layer.name, r.module, c.method, c.rank, dict(c.options)) for r in ranges for c in r.found]
    fits = iter(measure_all(jobs, track=track))
    return [[c._replace(**fit._asdict()) for c in r.found for fit in [next(fits)]] for r in ranges]


def _limit(module: nn.Module, method: str, options: Mapping[str, Any]) -> Rank | str:
    """Largest rank of a method for this layer, or why it cannot take it."""
    try:
        return METHODS[method].reject(module) or METHODS[method].max_rank(module, options_of(method, options))
    except ConfigError as error:  # an option that suits other layers
        return str(error)


def _priced(layer: LayerStats, module: nn.Module, form: Form, rank: Rank, times: Fraction) -> Candidate:
    method, options = form
    with torch.device("meta"):
        skeleton = METHODS[method].skeleton(module, rank, options_of(method, options))
    params, macs = cost_of(skeleton, layer.input_shape)
    return Candidate(method, rank, params, round(macs * times), math.nan, options=options)


def _without_values(module: nn.Module) -> str:
    """Why there is nothing in a weight to plan with, "" if there is; `factorize` refuses it as an error."""
    weight = cast(Tensor, module.weight)
    if weight.is_meta:
        return "it is on the meta device and has no values"
    if not weight.is_floating_point():
        return f"its weights are {str(weight.dtype).removeprefix('torch.')}"
    return "" if bool(weight.any()) else "its weights are all zero"


def repeats(layer: LayerStats, module: nn.Module) -> Fraction:
    """Return how many calls of its last size a layer is worth: the number of calls, unless their inputs differ in size."""
    with torch.device("meta"):
        _, single = cost_of(copy.deepcopy(module).to("meta"), layer.input_shape)
    return Fraction(layer.macs, single)


def front(found: list[Candidate]) -> list[Candidate]:
    """Keep those that no cheaper one beats, cheapest first; of those that are exact but for rounding the cheapest."""
    kept: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (c.macs, c.relative_error)):
        if not kept or (candidate.relative_error < kept[-1].relative_error and kept[-1].relative_error > ROUNDING):
            kept.append(candidate)
    return kept


def ranks(limit: Rank, multiple: int, *, narrow: int, pays: Callable[[Rank], bool]) -> Iterable[Rank]:
    """Ranks up to `limit`: a grid of one or two numbers of channels; along one line up to the last that `pays` for others.

    Ranks that are no numbers of channels have a limit far above what saves anything, and many axes would make a grid of too many points:
    all of these take the same fraction of their limits.

    Args:
        narrow: The fewer of the layer's input and output channels.
        pays: Whether a rank saves enough; once one does not, none above it does.
    """
    if len(limit) == 2 or (len(limit) == 1 and limit[0] <= narrow):
        return itertools.product(*(rank_grid(n, multiple) for n in limit))
    longest = max(limit)

    def at(t: int) -> Rank:
        return tuple(_rounded(max(1, n * t // longest), n, multiple) for n in limit)

    low, high = 0, longest  # invariant: at(low) pays, or low is 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pays(at(middle)) else (low, middle - 1)
    return dict.fromkeys(at(t) for t in rank_grid(_rounded(low, low, multiple), multiple)) if low else ()


def _rounded(r: int, limit: int, multiple: int) -> int:
    return max(multiple, r // multiple * multiple) if limit >= 4 * multiple else r


def rank_grid(limit: int, multiple: int) -> list[int]:
    """Ranks up to `limit`, in the channel multiple that kernels like, finer only where a layer has fewer than four multiples."""
    step = min(multiple, max(1, limit // 4))
    step *= -(-limit // (step * GRID))
    return sorted({*range(step, limit + 1, step), limit})
