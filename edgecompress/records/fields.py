"""Annotated fields of records: the command line, the reference pages and the check of ranges are made from them, so that none can drift."""

import math
from collections.abc import Collection, Iterable
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from edgecompress.errors import ConfigError


class Limits(NamedTuple):
    """The range of a number; NaN and infinity are always refused. `remedy` ends the message about a value out of it."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    remedy: str = ""


Fraction = Annotated[float, Limits(above=0, at_most=1, remedy="0.35 is 35%")]
Positive = Annotated[float, Limits(above=0)]
Count = Annotated[int, Limits(at_least=1)]


class Option(NamedTuple):
    """The help, choices and flag of an annotated field: `epochs: Annotated[int, Limits(at_least=0), Option("Epochs of training")] = 8`.

    Attributes:
        help: A sentence without its full stop, shown by `--help` with the choices and the default.
        more: Further sentences for the reference pages.
        choices: The values allowed; of a field with several values, those of each.
        kind: The noun for a value that is none of the choices; by default the name of the field.
        usual: The value in force where the default, "", None or 0, stands for another one.
        flag: The flag on the command line; by default the name of the field.
        metavar: The value's name on the command line.
        rare: Whether `--help` leaves the field to `--help-all` in a command with many options.
    """

    help: str
    more: str = ""
    choices: Collection[str] = ()
    kind: str = ""
    usual: str = ""
    flag: str = ""
    metavar: str = ""
    rare: bool = False


class OptionField(NamedTuple):
    """An annotated field of a record; `value_type` is that of one value, also where the field holds several."""

    name: str
    option: Option
    limits: Limits
    default: Any
    value_type: Any
    is_repeatable: bool


@cache
def option_fields(record: type[msgspec.Struct]) -> dict[str, OptionField]:
    """Return the fields of a record that are annotated with an `Option`, by name, in their order."""
    hints = get_type_hints(record, include_extras=True)
    found: dict[str, OptionField] = {}
    for field in msgspec.structs.fields(record):
        value_type, told, is_repeatable = _read_annotation(hints[field.name])
        option = next((each for each in told if isinstance(each, Option)), None)
        if option is not None:
            limits = next((each for each in told if isinstance(each, Limits)), Limits())
            found[field.name] = OptionField(field.name, option, limits, field.default, value_type, is_repeatable)
    return found


def check_values(record: msgspec.Struct) -> None:
    """Refuse a record with a value out of the range of its field.

    Raises:
        ConfigError: Names the field, the value and the range.
    """
    for field in option_fields(type(record)).values():
        check_value(field, getattr(record, field.name))


def check_value(field: OptionField, value: Any) -> None:
    """Refuse a value out of the range of a field; None and the default are always in it.

    Raises:
        ConfigError: Names the field, the value and the range.
    """
    option = field.option
    if value is None or value == field.default:
        return
    for choice in (value if field.is_repeatable else (value,)) if option.choices else ():
        check_choice(option.kind or field.name.replace("_", " "), choice, option.choices)
    if field.value_type in (int, float) and not (math.isfinite(value) and _is_inside(value, field.limits)):
        limits = describe_limits(field.limits) or "finite"
        raise ConfigError(f"{field.name} {value}: must be {limits}; {field.limits.remedy or _remedy(field)}")


def check_choice(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Raises:
        ConfigError: It is not; lists the known.
    """
    known = tuple(known)
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    return name


def describe_limits(limits: Limits) -> str:
    """Return e.g. `above 0 and at most 1`; "" where any number will do."""
    words = (("above", limits.above), ("at least", limits.at_least), ("at most", limits.at_most))
    return " and ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)


def describe_option(field: OptionField) -> str:
    """Return the help of a field with its choices and its default: "Optimizer of fine-tuning: sgd or adamw [sgd]."."""
    text, option = field.option.help, field.option
    if option.choices:
        *others, last = option.choices
        text += f": {', '.join(others)} or {last}" if others else f": {last}"
    text += "; repeatable" if field.is_repeatable else ""
    usual = describe_default(field)
    return f"{text} [{usual}]." if usual else f"{text}."


def describe_default(field: OptionField) -> str:
    """Return the value in force when nothing is given, as a person writes it; "" where there is none."""
    if field.option.usual or field.default is None or field.default in ("", ()):
        return field.option.usual
    if field.default is False:
        return ""
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def describe_fields(record: type[msgspec.Struct], summary: str) -> str:
    """Return the docstring of a record: a summary and a line for each annotated field."""
    lines = (f"    {name}: {' '.join(filter(None, (describe_option(f), f.option.more)))}" for name, f in option_fields(record).items())
    return "\n".join((summary, "", "Attributes:", *lines))


def _read_annotation(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Return the type of one value, all that annotates it, and whether the field holds several values.

    `Annotated[Annotated[float, a] | None, b]` is (float, (b, a), False), `Annotated[tuple[str, ...], b]` is (str, (b,), True).
    """
    told: tuple[Any, ...] = ()
    while True:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            told += arguments[1:]
            hint = arguments[0]
        elif origin in (Union, UnionType):
            hint = next(member for member in arguments if member is not type(None))
        elif origin is tuple:
            return arguments[0], told, True
        else:
            return hint, told, False


def _is_inside(value: float, limits: Limits) -> bool:
    return (
        (limits.above is None or value > limits.above)
        and (limits.at_least is None or value >= limits.at_least)
        and (limits.at_most is None or value <= limits.at_most)
    )


def _remedy(field: OptionField) -> str:
    if field.default is None:
        return "leave it out to set none"
    return f"{field.default:g} takes {field.option.usual}" if field.option.usual else f"the default is {describe_default(field)}"
