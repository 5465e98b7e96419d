"""Read the documentation of records from their docstrings and annotations."""

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any, Final, NamedTuple

import msgspec

import edgecompress.records
from edgecompress.records import Record

OUTSIDE: Final = ("edgecompress.runs", "edgecompress.reporting.document")  # modules beside `records/` that define records


class Field(NamedTuple):
    """One field of a record: its type and default as text, and the sentence about it in the docstring, if there is one."""

    name: str
    type: str
    default: str
    meaning: str


def modules() -> list[ModuleType]:
    """Return the modules that define records."""
    names = [name for _, name, _ in pkgutil.iter_modules(edgecompress.records.__path__, "edgecompress.records.")]
    return [importlib.import_module(name) for name in (*names, *OUTSIDE)]


def records_of(module: ModuleType) -> list[type[Record]]:
    """Return the public records that a module defines, in the order of the source."""
    found = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Record) and value is not Record]
    return [value for value in found if value.__module__ == module.__name__ and not value.__name__.startswith("_")]


def summary(record: type[Record]) -> str:
    """Return the docstring without its list of attributes, as one paragraph for each of its own."""
    text = inspect.cleandoc(record.__dict__.get("__doc__") or "").partition("Attributes:")[0]
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def fields_of(record: type[Record]) -> list[Field]:
    """Return the fields of a record with the meanings that its docstring gives."""
    meanings = parse_attributes(record)
    types: dict[str, Any] = {}
    for base in reversed(record.__mro__):
        types |= inspect.get_annotations(base)
    return [
        Field(field.name, type_text(types[field.name]), default_text(field), meanings.get(field.name, ""))
        for field in msgspec.structs.fields(record)
    ]


def parse_attributes(record: type[Record]) -> dict[str, str]:
    """Return the entries under `Attributes:` by name; an entry of several names counts for each of them."""
    found: dict[str, str] = {}
    for base in reversed(record.__mro__):
        block = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:")[2]
        for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", block, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def type_text(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if not isinstance(annotation, str) and "[" in str(annotation):
        text = str(annotation)
    return text.replace("typing.", "").replace("edgecompress.records.", "").replace(" | ", " or ").strip("'\"")


def default_text(field: Any) -> str:
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return f"`{'()' if value == () else msgspec.json.encode(value).decode()}`"
