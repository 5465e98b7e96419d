"""The inventory: a TOML file of `[[device]]` tables with the address, the labels and the settings of each device.

    [[device]]
    url = "ssh://pi@raspberrypi.local"
    name = "pi5"
    labels = ["arm64", "kitchen"]

A file with any mistake is refused whole: a device that is silently left out of a measurement is worse than a message.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote

import msgspec
from platformdirs import user_config_path

from edgecompress.devices import OPENERS, known_schemes
from edgecompress.devices.cooling import is_temperature
from edgecompress.devices.cpu_mask import parse_mask
from edgecompress.devices.text import sanitize
from edgecompress.devices.transports.ssh_address import parse_ssh_address
from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkOptions, Record
from edgecompress.records.evaluation import EvaluationOptions

INVENTORY_VARIABLE: Final = "EDGECOMPRESS_INVENTORY"
MAX_CPUS: Final = 1024  # more processors than any device has; a longer mask is a mistake


class InventoryEntry(Record, frozen=True, kw_only=True):
    """One device of the inventory.

    Attributes:
        url: The address: `ssh://…`, `adb://…` or `local://`.
        name: The name that `--device` takes in place of the URL.
        labels: The labels by which `pool:LABEL` selects devices.
        runner: Absolute path of the runner to use where no other is given; "" for the usual one.
        python: The interpreter on the device that has the runtime; "" for the usual one.
        cpu_mask: Processors to run on, hexadecimal digits without 0x; "" for every processor.
        cooldown_c: Temperature in °C to which the device must have cooled down before a measurement.
        notes: A text for people.
    """

    url: str
    name: str = ""
    labels: tuple[str, ...] = ()
    runner: str = ""
    python: str = ""
    cpu_mask: str = ""
    cooldown_c: float | None = None
    notes: str = ""


def default_inventory_path() -> Path:
    """Return the path of the inventory that is used where none is named: `edgecompress/devices.toml` among the user's settings."""
    return user_config_path("edgecompress") / "devices.toml"


def load_inventory(path: Path | None = None) -> tuple[InventoryEntry, ...]:
    """Return the entries of `path`, else of the file that EDGECOMPRESS_INVENTORY names, else of the default file if there is one.

    Raises:
        ConfigError: The named file is missing, or something in the file is wrong; says which file, entry and key.
    """
    setting = os.environ.get(INVENTORY_VARIABLE)
    chosen = path or (Path(setting).expanduser() if setting else None)
    file = chosen or default_inventory_path()
    try:
        document = tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError as error:
        if chosen is None:
            return ()
        raise ConfigError(f"{file}: no such inventory; write it or name another with --inventory or {INVENTORY_VARIABLE}") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start}); an inventory is a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: malformed TOML: {sanitize(str(error), limit=300)}; mend that line") from error
    entries = tuple(_parse_entry(raw, number, file) for number, raw in enumerate(_read_tables(document, file), 1))
    _refuse_duplicates(entries, file)
    return entries


def select_by_label(entries: Sequence[InventoryEntry], label: str) -> tuple[InventoryEntry, ...]:
    """Return the entries that carry `label`, in the order of the file."""
    return tuple(entry for entry in entries if label in entry.labels)


def find_entry(entries: Sequence[InventoryEntry], name_or_url: str) -> InventoryEntry | None:
    """Return the entry with that name or URL; None when there is none."""
    if not name_or_url:
        return None
    return next((entry for entry in entries if entry.name == name_or_url or is_same_address(entry.url, name_or_url)), None)


def resolve_device(device: str, inventory: Path | None = None) -> InventoryEntry:
    """Return the inventory's entry of the device with that name; a URL becomes an entry without settings.

    Raises:
        ConfigError: The inventory is wrong, or has no such name.
    """
    if "://" in device or not device:
        return InventoryEntry(url=device)
    entries = load_inventory(inventory)
    if (entry := find_entry(entries, device)) is not None:
        return entry
    names = ", ".join(repr(entry.name) for entry in entries if entry.name) or "which is empty"
    raise ConfigError(
        f"{sanitize(device, limit=200)!r}: unknown kind of device; choose from {known_schemes()} or a name of the inventory: {names}"
    )


Options = TypeVar("Options", BenchmarkOptions, EvaluationOptions)


def apply_entry(options: Options, entry: InventoryEntry) -> Options:
    """Return `options` with the settings of an inventory entry where they hold none themselves."""
    said = {name: getattr(entry, name) for name in ("runner", "python", "cpu_mask", "cooldown_c") if hasattr(options, name)}
    return msgspec.structs.replace(options, **{name: value for name, value in said.items() if getattr(options, name) in ("", None)})


def is_same_address(url: str, other: str) -> bool:
    """Tell whether two URLs name one device, as `adb://a%20b` and `adb://a b` do."""
    return _normalize_url(url) == _normalize_url(other)


Table: TypeAlias = dict[str, Any]


def _read_tables(document: Table, file: Path) -> list[Table]:
    if unknown := sorted(document.keys() - {"device"}):
        raise ConfigError(f"{file}: unknown key {sanitize(unknown[0])!r}; an inventory consists of [[device]] tables")
    tables = document.get("device", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: device is no array of tables; begin each device with the line [[device]]")
    return tables


def _parse_entry(raw: Table, number: int, file: Path) -> InventoryEntry:
    """Return the entry of one table; a message about a mistake has the number and the name of the entry."""
    name = raw.get("name", "")
    where = f"{file}: device {number}" + (f" ({sanitize(name, limit=80)})" if isinstance(name, str) and name else "")
    if unknown := sorted(raw.keys() - set(InventoryEntry.__struct_fields__)):
        raise ConfigError(f"{where}: unknown key {sanitize(unknown[0])!r}; choose from {', '.join(InventoryEntry.__struct_fields__)}")
    mask = {"cpu_mask": _parse_mask(raw["cpu_mask"], where)} if "cpu_mask" in raw else {}
    try:
        entry = msgspec.convert(raw | mask, InventoryEntry)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {sanitize(str(error), limit=300)}; see the example inventory") from error
    for key, values in {"url": (entry.url,), "name": (entry.name,), "labels": entry.labels, "python": (entry.python,)}.items():
        if not all(value.isprintable() and value == value.strip() for value in values):
            raise ConfigError(f"{where}: control characters, or blanks around it, in {key}; remove them")
    _check_url(entry.url, where)
    if ":" in entry.name:
        raise ConfigError(f"{where}: a colon in the name, which would read as a URL or a pool; choose another name")
    if not all(entry.labels):
        raise ConfigError(f"{where}: an empty label; remove it")
    if entry.cooldown_c is not None and not is_temperature(entry.cooldown_c):
        raise ConfigError(f"{where}: cooldown_c = {entry.cooldown_c:g} is no temperature to cool down to; give °C, e.g. 37")
    return msgspec.structs.replace(entry, runner=_resolve_runner(entry.runner, where, file))


def _parse_mask(value: object, where: str) -> str:
    """Return a mask that is written as hexadecimal text ("f0", "0xf0") or as a number (0xf0) in the one form that `taskset` takes."""
    number = parse_mask(value) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 1 << MAX_CPUS:
        said = sanitize(repr(value), limit=80)
        raise ConfigError(f'{where}: cpu_mask = {said} is no CPU mask; write hexadecimal digits with a bit for each CPU, e.g. "f0"')
    return f"{number:x}"


def _check_url(url: str, where: str) -> None:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in OPENERS:
        raise ConfigError(f"{where}: url = {sanitize(url, limit=200)!r} is of unknown kind; choose from {known_schemes()}")
    if scheme == "ssh":
        try:
            parse_ssh_address(rest)
        except ValueError as error:
            raise ConfigError(f"{where}: url: {error}") from error
    elif scheme == "adb" and not rest:
        raise ConfigError(f"{where}: no serial in the url; write adb://SERIAL as `edgecompress devices` shows it")
    elif scheme == "local" and rest:
        raise ConfigError(f"{where}: local:// takes nothing behind it; use ssh:// for another machine")


def _resolve_runner(text: str, where: str, file: Path) -> str:
    """Return the absolute path of a runner; a relative one starts at the inventory's folder."""
    if not text:
        return ""
    path = (file.resolve().parent / Path(text).expanduser()).resolve()
    if not path.is_file():
        raise ConfigError(f"{where}: runner {path}: no such file; a relative path starts at the inventory's folder")
    return str(path)


def _refuse_duplicates(entries: Sequence[InventoryEntry], file: Path) -> None:
    """Refuse two entries with one name or one address: a device under two entries could be leased twice."""
    names: dict[str, int] = {}
    addresses: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        if entry.name and names.setdefault(entry.name, number) != number:
            raise ConfigError(f"{file}: device {number}: the name {entry.name!r} is that of device {names[entry.name]} too; rename one")
        if (first := addresses.setdefault(_normalize_url(entry.url), number)) != number:
            raise ConfigError(f"{file}: device {number}: the url {entry.url} is that of device {first} too; remove one")


def _normalize_url(url: str) -> str:
    return unquote(url).rstrip("/")
