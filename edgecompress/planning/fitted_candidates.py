"""Fitted candidates of every layer of a network: the forms worth their added operators, or the one form fixed by hand."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import parse_options
from edgecompress.network.surgery import find_tied_layers
from edgecompress.options import AUTO, Choice
from edgecompress.planning import stages
from edgecompress.planning.candidates import (
    DENSE,
    Candidate,
    LayerCandidates,
    MethodOptions,
    dense_candidate,
    fit_candidates,
    fixed_candidate,
    pareto_front,
    worthwhile_candidates,
)
from edgecompress.progress import Track, track_silently
from edgecompress.records import LayerStats, ModelStats

FAST_METHODS: Final = (
    "svd",
    "tucker2",
    "spatial_svd",
)  # their fit is in closed form; they run at most three layers that every runtime runs fast
MEASURED_METHODS: Final = (*FAST_METHODS, "channel_svd")  # for plans with latencies, which show whether its operators pay


class FittedCandidates(NamedTuple):
    """The fitted candidates of each layer.

    Attributes:
        candidates: Layer → the forms that no cheaper one beats, cheapest first, and last the layer's present form, dense or factorized.
        beaten: Layer → methods whose every form is beaten.
        reasons: Layer → why it has no other form; "" if it has one.
    """

    candidates: dict[str, list[Candidate]]
    beaten: dict[str, list[str]]
    reasons: dict[str, str]


def methods_to_try(method: str, options: Mapping[str, Any] | None, *, measured: bool) -> list[MethodOptions]:
    """Return the methods that layers may take, with their options.

    Args:
        method: One method, or "auto" for the default selection.
        measured: Whether latencies are known; the default selection is then larger.

    Raises:
        ConfigError: The method or an option is unknown.
    """
    if method == AUTO and options:
        raise ConfigError(f"method {AUTO}: takes no options; name the method they are for")
    selected = [(name, dict(options or {})) for name in ((MEASURED_METHODS if measured else FAST_METHODS) if method == AUTO else (method,))]
    for each in selected:
        parse_options(*each)
    return list(selected)


def find_candidates(
    model: nn.Module,
    stats: ModelStats,
    forms: Sequence[MethodOptions],
    *,
    fixed: Mapping[str, Choice] = MappingProxyType({}),
    multiple: int = 8,
    current: Mapping[str, Candidate] = MappingProxyType({}),
    track: Track = track_silently,
) -> FittedCandidates:
    """Return the fitted candidates of each layer.

    Args:
        forms: Methods to try, with their options.
        fixed: Layer → the form fixed by hand.
        multiple: Ranks are multiples of it where a layer is wide enough.
        current: Layer → its present form, for layers that are factorized already.

    Raises:
        ConfigError: A fixed layer does not exist, or its rank or an option does not fit it.
        UnsupportedError: The method of a fixed choice cannot factorize its layer.
        ToolchainError: A process that factorized layers died.
    """
    known = [layer.name for layer in stats.layers]
    for name in fixed:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            meant = f"did you mean {', '.join(near)}?" if near else "see `edgecompress analyze`"
            raise ConfigError(f"{name}: no such layer; {meant}")
    tied = find_tied_layers(model)
    unfitted = [
        _lower_rank_candidates(layer, model.get_submodule(layer.name), current[layer.name], multiple, fixed=layer.name in fixed)
        if layer.name in current
        else _layer_candidates(layer, model.get_submodule(layer.name), forms, fixed.get(layer.name), tied, multiple)
        for layer in stats.layers
    ]
    made = FittedCandidates({}, {}, {each.layer.name: each.reason for each in unfitted})
    for each, found in zip(unfitted, fit_candidates(unfitted, track=track), strict=True):
        name = each.layer.name
        kept = found if name in fixed else pareto_front(found)
        made.candidates[name] = kept if kept and name in fixed else [*kept, current.get(name) or dense_candidate(each.layer)]
        made.beaten[name] = sorted({c.method for c in found} - {c.method for c in kept})
    return made


def _layer_candidates(
    layer: LayerStats, module: nn.Module, forms: Sequence[MethodOptions], choice: Choice | None, tied: dict[str, str], multiple: int
) -> LayerCandidates:
    """Return the unfitted candidates of a dense layer: the choice fixed by hand, or all that are worthwhile."""
    if choice is not None and choice.method == DENSE:
        return LayerCandidates(layer, module, [], "kept dense as asked")
    reason = layer.irreplaceable if layer.name else "it is the whole model; wrap it in a module"
    if layer.name in tied:
        reason = f"its weight is shared with {tied[layer.name]}"
    if choice is None:
        return LayerCandidates(layer, module, [], reason) if reason else worthwhile_candidates(layer, module, forms, multiple=multiple)
    if reason:
        raise UnsupportedError(f"{layer.name or 'layer'}: {reason}; leave it dense")
    return fixed_candidate(layer, module, choice.method, choice.rank, choice.options)


def _lower_rank_candidates(layer: LayerStats, module: nn.Module, now: Candidate, multiple: int, *, fixed: bool) -> LayerCandidates:
    """Return the unfitted candidates of a factorized layer: its present method at lower ranks, none if it was fixed by hand."""
    if fixed:
        return LayerCandidates(layer, module, [], "as asked")
    made = worthwhile_candidates(layer, module, [(now.method, now.options)], multiple=multiple)
    return made._replace(found=stages.lower_ranks(made.found, now))
