"""What may become of each layer of a network: the forms worth their operators, fitted, or the one form that was asked for."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import options_of
from edgecompress.network.surgery import tied_layers
from edgecompress.options import AUTO, Choice
from edgecompress.planning import stages
from edgecompress.planning.candidates import DENSE, Candidate, Form, Range, dense, fitted, front, one, worthwhile
from edgecompress.progress import Track, silent
from edgecompress.records import LayerStats, ModelStats

# Of all methods those whose fit is in closed form, and that compute in at most three layers of kinds that every runtime is fast in.
QUICK: Final = ("svd", "tucker2", "spatial_svd")
MEASURED: Final = (*QUICK, "channel_svd")  # where latencies say which are worth their operators


class Choices(NamedTuple):
    """What may become of each layer.

    Attributes:
        candidates: The forms that no cheaper one beats, cheapest first, and last what the layer is now, dense or already factorized.
        beaten: Methods that have none among these.
        reasons: Why there is no form; "" where there is one.
    """

    candidates: dict[str, list[Candidate]]
    beaten: dict[str, list[str]]
    reasons: dict[str, str]


def forms_of(method: str, options: Mapping[str, Any] | None, *, measured: bool) -> list[Form]:
    """Return the methods that layers may take.

    Raises:
        ConfigError: Unknown method or option.
    """
    if method == AUTO and options:
        raise ConfigError(f"method {AUTO}: takes no options; name the method they are for")
    forms = [(name, dict(options or {})) for name in ((MEASURED if measured else QUICK) if method == AUTO else (method,))]
    for form in forms:
        options_of(*form)
    return list(forms)


def candidates_of(
    model: nn.Module,
    stats: ModelStats,
    forms: Sequence[Form],
    *,
    fixed: Mapping[str, Choice] = MappingProxyType({}),
    multiple: int = 8,
    present: Mapping[str, Candidate] = MappingProxyType({}),
    track: Track = silent,
) -> Choices:
    """Return what may become of each layer.

    Raises:
        ConfigError: A fixed layer that is not there, or a rank or an option that does not fit it.
        UnsupportedError: A fixed choice cannot take its layer.
        ToolchainError: A process that factorized layers died.
    """
    known = [layer.name for layer in stats.layers]
    for name in fixed:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise ConfigError(f"{name}: no such layer; {'did you mean ' + ', '.join(near) if near else 'see `edgecompress analyze`'}?")
    tied = tied_layers(model)
    ranges = [
        _further(layer, model.get_submodule(layer.name), present[layer.name], multiple, fixed=layer.name in fixed)
        if layer.name in present
        else _range(layer, model.get_submodule(layer.name), forms, fixed.get(layer.name), tied, multiple)
        for layer in stats.layers
    ]
    made = Choices({}, {}, {each.layer.name: each.reason for each in ranges})
    for each, found in zip(ranges, fitted(ranges, track=track), strict=True):
        name = each.layer.name
        kept = found if name in fixed else front(found)
        made.candidates[name] = kept if kept and name in fixed else [*kept, present.get(name) or dense(each.layer)]
        made.beaten[name] = sorted({c.method for c in found} - {c.method for c in kept})
    return made


def _range(
    layer: LayerStats, module: nn.Module, forms: Sequence[Form], choice: Choice | None, tied: dict[str, str], multiple: int
) -> Range:
    if choice is not None and choice.method == DENSE:
        return Range(layer, module, [], "kept dense as asked")
    reason = "it is the whole model; wrap it in a module" if not layer.name else ""
    if layer.name in tied:
        reason = f"its weight is shared with {tied[layer.name]}"
    if choice is None:
        return Range(layer, module, [], reason) if reason else worthwhile(layer, module, forms, multiple=multiple)
    if reason:
        raise UnsupportedError(f"{layer.name or 'layer'}: {reason}; leave it dense")
    return one(layer, module, choice.method, choice.rank, choice.options)


def _further(layer: LayerStats, module: nn.Module, now: Candidate, multiple: int, *, fixed: bool) -> Range:
    """Return what a factorized layer may become: its form at lower ranks."""
    if fixed:
        return Range(layer, module, [], "as asked")
    made = worthwhile(layer, module, [(now.method, now.options)], multiple=multiple)
    return made._replace(found=stages.below(made.found, now))
