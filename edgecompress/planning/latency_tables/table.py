"""Cost tables on disk and what can be read from them, between measured ranks too."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from platformdirs import user_cache_path

from edgecompress.errors import ConfigError
from edgecompress.files import write_atomic
from edgecompress.records import BenchmarkResult, Cost, CostTable, LayerForm, read, to_json

Key = tuple[str, str, str]  # geometry, form, scheme
VERSION: Final = 2  # of what tables hold: where an older edgecompress kept one, another is begun
SLUG: Final = re.compile(r"[^A-Za-z0-9.]+")


class Wanted(NamedTuple):
    """A form to measure in a scheme; `macs` of one call."""

    form: LayerForm
    scheme: str
    macs: int

    @property
    def key(self) -> Key:
        return self.form.geometry, self.form.form, self.scheme

    @property
    def dense(self) -> "Wanted":
        """The same layer as it is, in the same scheme; its MACs are not known here."""
        return self._replace(form=msgspec.structs.replace(self.form, method="dense", rank=(), options={}), macs=0)


def conditions_of(result: BenchmarkResult) -> CostTable:
    """Return an empty table for the device, runtime and threads of a result."""
    d = result.device
    device = ", ".join(filter(None, (d.model, d.soc if d.soc != d.model else "", d.abi))) or d.serial or d.url
    return CostTable(device=device, runtime=result.backend, threads=result.threads, cpu_mask=result.cpu_mask)


def where(table: CostTable) -> str:
    """Return device, runtime and threads, for people."""
    threads = f"{table.threads} thread{'s' if table.threads != 1 else ''}"
    return ", ".join(filter(None, (table.device, table.runtime, threads, table.cpu_mask and f"CPUs {table.cpu_mask}")))


def path_of(table: CostTable) -> Path:
    """Return where this user's table of such a device, runtime and number of threads is kept."""
    what = (VERSION, table.device, table.runtime, table.threads, table.cpu_mask)
    readable = SLUG.sub("-", f"{table.device} {table.runtime} {table.threads} threads").strip("-")[:80]
    return user_cache_path("edgecompress") / "costs" / f"{readable}-{hashlib.sha256(repr(what).encode()).hexdigest()[:8]}.json"


def load(path: Path, *, conditions: CostTable | None = None) -> CostTable:
    """Return the table of a file; an empty one of `conditions` when there is no file and conditions are given.

    Raises:
        ConfigError: No table, or one of another device, runtime or number of threads than `conditions`.
    """
    if conditions is not None and not path.exists():
        return conditions
    table = read(path, CostTable)
    if conditions is not None and (other := _unlike(table, conditions)):
        raise ConfigError(f"{path}: {other}; name another file, or leave --table out to keep one for each device")
    return table


def save(table: CostTable, path: Path) -> None:
    """Write the table with what another process may have added to the file meanwhile."""
    with suppress(ConfigError):
        table = merged(load(path, conditions=empty(table)), table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(table))


def empty(table: CostTable) -> CostTable:
    return msgspec.structs.replace(table, layers={}, networks={})


def merged(old: CostTable, new: CostTable) -> CostTable:
    """Return `old` with what `new` has, which wins."""
    layers = {geometry: {form: dict(costs) for form, costs in forms.items()} for geometry, forms in old.layers.items()}
    for geometry, forms in new.layers.items():
        for form, costs in forms.items():
            layers.setdefault(geometry, {}).setdefault(form, {}).update(costs)
    networks = {name: dict(costs) for name, costs in old.networks.items()}
    for name, whole in new.networks.items():
        networks.setdefault(name, {}).update(whole)
    return msgspec.structs.replace(old, layers=layers, networks=networks)


def with_layers(table: CostTable, measured: Mapping[Key, Cost]) -> CostTable:
    layers: dict[str, dict[str, dict[str, Cost]]] = {}
    for (geometry, form, scheme), cost in measured.items():
        layers.setdefault(geometry, {}).setdefault(form, {})[scheme] = cost
    return merged(table, msgspec.structs.replace(empty(table), layers=layers))


def lacking(table: CostTable, wanted: Iterable[Wanted]) -> list[Wanted]:
    """Return what of these the table has not, each once."""
    by_key = {w.key: w for w in wanted}
    return [w for w in by_key.values() if cost_of(table, w) is None]


def cost_of(table: CostTable, wanted: Wanted) -> Cost | None:
    """Return what was measured of exactly this form and scheme."""
    geometry, form, scheme = wanted.key
    return table.layers.get(geometry, {}).get(form, {}).get(scheme)


def ms_of(table: CostTable, form: LayerForm, macs: int, scheme: str) -> float | None:
    """Return milliseconds of a form: as measured, or between the nearest measured ranks of its method by MACs; None when there are none.

    Args:
        macs: Of one call of the form.
    """
    if exact := cost_of(table, Wanted(form, scheme, macs)):
        return exact.ms
    known = table.layers.get(form.geometry, {})
    alike = {costs[scheme].macs: costs[scheme].ms for name, costs in known.items() if scheme in costs and _alike(name, form)}
    if not alike:
        return None
    below = max((m for m in alike if m <= macs), default=None)
    above = min((m for m in alike if m >= macs), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return alike[nearest] * (macs / nearest if below is None else max(1.0, macs / nearest))
    return alike[below] + (alike[above] - alike[below]) * ((macs - below) / (above - below) if above > below else 0.0)


def _alike(name: str, form: LayerForm) -> bool:
    """Whether a key of the table is the same method with the same options."""
    method, *rest = name.split(" ")
    options = [word for word in rest if "=" in word]
    return method == form.method and options == [f"{k}={v}" for k, v in sorted(form.options.items())]


def _unlike(table: CostTable, other: CostTable) -> str:
    for name in ("device", "runtime", "threads", "cpu_mask"):
        here, there = getattr(table, name), getattr(other, name)
        if here != there:
            return f"its {name.replace('_', ' ')} is {here or 'none'}, here it is {there or 'none'}"
    return ""
