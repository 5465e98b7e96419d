"""The base class of all records, and their JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from edgecompress.errors import ConfigError

SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, compared by value, unknown keys refused."""


R = TypeVar("R", bound=Record)


def to_json(record: Record | tuple[Record, ...] | list[Record]) -> bytes:
    """Return indented JSON ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def from_json(data: bytes, kind: type[R], *, source: str | Path) -> R:
    """Parse JSON as a record of `kind`.

    Raises:
        ConfigError: Malformed JSON, an unknown or missing key, a wrong type, or another schema; names `source`.
    """
    try:
        record = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ConfigError(f"{source}: not {article} {kind.__name__}: {error}; remove it and run the step again") from error
    if getattr(record, "schema", SCHEMA) != SCHEMA:
        raise ConfigError(f"{source}: schema {getattr(record, 'schema', None)}, this edgecompress reads {SCHEMA}; run the step again")
    return record


def read_record(path: Path, kind: type[R]) -> R:
    """Read one record from a JSON file.

    Raises:
        ConfigError: The file is missing or holds no such record.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; run the step that writes it") from error
    return from_json(data, kind, source=path)
