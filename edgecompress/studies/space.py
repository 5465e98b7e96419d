"""The space of a search: one row for each option that may vary, and one axis for the files of a target."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from edgecompress.errors import ConfigError
from edgecompress.options import Options, select_outputs, update_options
from edgecompress.records import Axis
from edgecompress.records.search import Value

DEFAULT_TRIALS: Final = 30
# An axis of "FORMAT SCHEME" pairs, because each format has its own schemes.
OUTPUT: Final = "output"


class VariedOption(NamedTuple):
    """An option that a search may vary.

    Attributes:
        kind: Type of its values; a float may have a range.
        usual: Its axis by default; None leaves the option fixed.
        is_budget: Whether it is a budget; a search that varies one budget leaves the default one out.
    """

    kind: type[int] | type[float] | type[str]
    usual: Axis | None = None
    is_budget: bool = False


VARIED: Final = {
    "macs_ratio": VariedOption(float, Axis(low=0.2, high=1.0), is_budget=True),
    "params_ratio": VariedOption(float, is_budget=True),
    "size_mb": VariedOption(float, is_budget=True),
    "latency_ms": VariedOption(float, is_budget=True),
    "speedup": VariedOption(float, is_budget=True),
    "max_drop": VariedOption(float, is_budget=True),
    "method": VariedOption(str, Axis(values=("auto", "spatial_svd", "channel_svd"))),
    "allocator": VariedOption(str, Axis(values=("latency", "minmax", "energy"))),
    "resolution": VariedOption(int),
}


def build_space(options: Options, given: Collection[str], vary: Sequence[str], before: Mapping[str, Axis] | None = None) -> dict[str, Axis]:
    """Return the axes of a search, in the order of `VARIED`.

    Args:
        options: The options that all trials share.
        given: Names of options that the caller fixed, which are therefore not varied.
        vary: `NAME=LOW:HIGH` or `NAME=VALUE,VALUE`; one name may stand more than once.
        before: The axes of the study that is continued, in place of the default ones.

    Raises:
        ConfigError: An option that cannot be varied, is fixed already, or may not have such a value.
    """
    asked = _parse_axes(vary)
    for name in asked:
        if name in given:
            raise ConfigError(f"--vary {name}: it is given as --{name.replace('_', '-')} too; leave out one of them")
    if before is None:
        told = any(option.is_budget and (name in asked or name in given) for name, option in VARIED.items())
        before = {name: option.usual for name, option in VARIED.items() if option.usual and not (told and option.is_budget)}
    axes = {name: axis for name, axis in before.items() if name not in given} | asked
    axes = {name: axes[name] for name in VARIED if name in axes}
    axes[OUTPUT] = Axis(values=tuple(" ".join(pair) for pair in select_outputs(options)))
    for name, axis in axes.items():
        for value in axis.values or (axis.low, axis.high):
            apply_choice(options, {name: value})
    return axes


def apply_choice(options: Options, choice: Mapping[str, Value]) -> Options:
    """Return the options of the trial with this choice.

    Raises:
        ConfigError: A value out of its range.
    """
    changes: dict[str, Any] = dict(choice)
    if OUTPUT in changes:
        format_name, _, scheme = str(changes.pop(OUTPUT)).partition(" ")
        changes |= {"format": (format_name,), "scheme": (scheme,)}
    return update_options(options, changes)


def _parse_axes(vary: Sequence[str]) -> dict[str, Axis]:
    axes: dict[str, Axis] = {}
    for text in vary:
        name, equals, told = text.partition("=")
        name = name.replace("-", "_")
        if name not in VARIED:
            raise ConfigError(f"--vary {text}: {name or 'nothing'} cannot be varied; choose from {', '.join(VARIED)}")
        if not (equals and told):
            raise ConfigError(f"--vary {text}: write NAME=LOW:HIGH or NAME=VALUE,VALUE, e.g. macs_ratio=0.3:0.9")
        axis, before = _parse_axis(text, VARIED[name].kind, told), axes.get(name)
        if before and not (before.values and axis.values):
            raise ConfigError(f"--vary {text}: {name} has a range already; give one range, or values")
        axes[name] = axis if before is None else Axis(values=tuple(dict.fromkeys((*before.values, *axis.values))))
    return axes


def _parse_axis(text: str, kind: type[int] | type[float] | type[str], told: str) -> Axis:
    """Read a range or a list; a method with options of its own (`cp3:seed=1,starts=5`) is one value, commas and all."""
    whole = kind is str and ":" in told
    try:
        if kind is float and ":" in told:
            low, high = map(float, told.split(":"))
            if not -math.inf < low < high < math.inf:
                raise ValueError
            return Axis(low=low, high=high)
        return Axis(values=tuple(dict.fromkeys(kind(value) for value in ([told] if whole else told.split(",")))))
    except ValueError as error:
        what = "numbers, LOW:HIGH with LOW below HIGH" if kind is float else "whole numbers"
        raise ConfigError(f"--vary {text}: give {what}") from error
