"""Parameters of commands: those made from the annotated fields of a record, and the few that are no field of a record."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from edgecompress.records import Record
from edgecompress.records.fields import Option, OptionField, check_values, describe_option, option_fields

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=Callable[..., None])

Target = Annotated[
    str | None,
    typer.Argument(metavar="TARGET", help="Recipe, FILE.py:FUNCTION@SHAPE or run folder.", show_default=False),
]
RunFolder = Annotated[Path | None, typer.Option("--run", metavar="FOLDER", help="Run folder [runs/NAME].", show_default=False)]
Artifacts = Annotated[list[Path], typer.Argument(metavar="ARTIFACT", help="Artifacts, or a run folder for all of its artifacts.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="local://, adb://SERIAL, ssh://user@host:port, pool:LABEL or a name of the inventory [local://].",
        show_default=False,
    ),
]
Inventory = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file of devices [EDGECOMPRESS_INVENTORY].", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
METAVARS: Final = {int: "N", float: "NUMBER", str: "TEXT"}


def add_fields(
    record: type[Record],
    names: Iterable[str] = (),
    *,
    can_negate: bool = False,
    instead: dict[str, Option] | None = None,
    also_rare: Iterable[str] = (),
) -> Callable[[F], F]:
    """Return a decorator that gives a function with `**given` a parameter for each named field of a record; without names for all fields.

    The command line reads the function's signature: its keyword-only parameters come after those of the record.

    Args:
        can_negate: Whether switches have a `--no-` form, for values that a run folder keeps.
        instead: Options that describe fields in this command in place of their own.
        also_rare: Fields that this command's `--help` leaves to `--help-all` beside the rare ones.
    """
    fields, names = option_fields(record), tuple(names)
    chosen = [
        field._replace(option=(instead or {}).get(name, field.option)) for name, field in fields.items() if not names or name in names
    ]

    def add(function: F) -> F:
        own = [each for each in inspect.signature(function).parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        first = [
            each.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in own if each.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        last = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
        made = [make_parameter(field, can_negate=can_negate) for field in chosen]
        function.__signature__ = inspect.Signature([*first, *made, *last])  # type: ignore[attr-defined]
        function.rare = {field.name for field in chosen if field.option.rare} | set(also_rare)  # type: ignore[attr-defined]
        return function

    return add


def make_parameter(field: OptionField, *, can_negate: bool = False) -> inspect.Parameter:
    """Return the parameter of a command for a field; None is its default and stands for "not given"."""
    switch, flag = field.value_type is bool, flag_of(field)
    declared = f"{flag}/--no-{flag.removeprefix('--')}" if switch and can_negate else flag
    value_type = list[field.value_type] if field.is_repeatable else field.value_type  # type: ignore[name-defined]
    metavar = None if switch else field.option.metavar or METAVARS[field.value_type]
    told = typer.Option(declared, metavar=metavar, help=describe_option(field), show_default=False)
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value_type | None, told])


def make_record(record: type[R], given: dict[str, Any]) -> R:
    """Return a record with the given values, and its defaults where a value is None.

    Raises:
        ConfigError: A value out of its range.
    """
    made = record(**{name: value for name, value in given.items() if value is not None})
    check_values(made)
    return made


def flag_of(field: OptionField) -> str:
    """Return the flag of an option: `calibration_samples` is `--calibration-samples`."""
    return field.option.flag or f"--{field.name.replace('_', '-')}"
