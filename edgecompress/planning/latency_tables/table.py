"""Cost tables on disk: load, save and merge them, and estimate latencies between measured ranks."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from platformdirs import user_cache_path

from edgecompress.devices.statistics import differing_conditions, kind_of_device
from edgecompress.errors import ConfigError
from edgecompress.files import write_atomically
from edgecompress.records import BenchmarkResult, Cost, CostTable, LayerForm, read_record, to_json

CostKey = tuple[str, str, str]  # geometry, form, scheme
TABLE_VERSION: Final = 2  # part of a table's path: after a change of its content a new table is begun
UNSAFE_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9.]+")


class LatencyQuery(NamedTuple):
    """A form of a layer whose latency in a scheme is wanted; `macs` are those of one call."""

    form: LayerForm
    scheme: str
    macs: int

    @property
    def key(self) -> CostKey:
        """Geometry, form and scheme, under which a table keeps the cost."""
        return self.form.geometry, self.form.form, self.scheme

    @property
    def dense(self) -> "LatencyQuery":
        """The query for the dense layer in the same scheme, with 0 for its unknown MACs."""
        return self._replace(form=msgspec.structs.replace(self.form, method="dense", rank=(), options={}), macs=0)


def table_for_result(result: BenchmarkResult) -> CostTable:
    """Return an empty table for the device, runtime and threads of a result."""
    return CostTable(device=kind_of_device(result.device), runtime=result.backend, threads=result.threads, cpu_mask=result.cpu_mask)


def describe_conditions(table: CostTable) -> str:
    """Return the device, runtime and threads of a table, for people."""
    threads = f"{table.threads} thread{'s' if table.threads != 1 else ''}"
    return ", ".join(filter(None, (table.device, table.runtime, threads, table.cpu_mask and f"CPUs {table.cpu_mask}")))


def table_path(table: CostTable) -> Path:
    """Return the path of this user's table for the device, runtime and number of threads of `table`."""
    what = (TABLE_VERSION, table.device, table.runtime, table.threads, table.cpu_mask)
    readable = UNSAFE_IN_NAMES.sub("-", f"{table.device} {table.runtime} {table.threads} threads").strip("-")[:80]
    return user_cache_path("edgecompress") / "costs" / f"{readable}-{hashlib.sha256(repr(what).encode()).hexdigest()[:8]}.json"


def load_table(path: Path, *, conditions: CostTable | None = None) -> CostTable:
    """Return the table of a file; `conditions`, an empty table, if given and the file does not exist.

    Raises:
        ConfigError: The file holds no table, or one of another device, runtime or number of threads than `conditions`.
    """
    if conditions is not None and not path.exists():
        return conditions
    table = read_record(path, CostTable)
    if conditions is not None and (other := _describe_difference(table, conditions)):
        raise ConfigError(f"{path}: {other}; name another file, or leave --table out to keep one for each device")
    return table


def save_table(table: CostTable, path: Path) -> None:
    """Write the table, together with entries that another process added to the file meanwhile."""
    with suppress(ConfigError):
        table = merge_tables(load_table(path, conditions=without_costs(table)), table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json(table))


def without_costs(table: CostTable) -> CostTable:
    """Return an empty table of the same device, runtime and threads."""
    return msgspec.structs.replace(table, layers={}, networks={})


def merge_tables(old: CostTable, new: CostTable) -> CostTable:
    """Return `old` with the entries of `new`, which replace those that both have."""
    layers = {geometry: {form: dict(costs) for form, costs in forms.items()} for geometry, forms in old.layers.items()}
    for geometry, forms in new.layers.items():
        for form, costs in forms.items():
            layers.setdefault(geometry, {}).setdefault(form, {}).update(costs)
    networks = {name: dict(costs) for name, costs in old.networks.items()}
    for name, whole in new.networks.items():
        networks.setdefault(name, {}).update(whole)
    return msgspec.structs.replace(old, layers=layers, networks=networks)


def add_layers(table: CostTable, measured: Mapping[CostKey, Cost]) -> CostTable:
    """Return the table with measured costs of layers added."""
    layers: dict[str, dict[str, dict[str, Cost]]] = {}
    for (geometry, form, scheme), cost in measured.items():
        layers.setdefault(geometry, {}).setdefault(form, {})[scheme] = cost
    return merge_tables(table, msgspec.structs.replace(without_costs(table), layers=layers))


def missing_queries(table: CostTable, wanted: Iterable[LatencyQuery]) -> list[LatencyQuery]:
    """Return the queries, each once, that the table has no cost for."""
    by_key = {w.key: w for w in wanted}
    return [w for w in by_key.values() if find_cost(table, w) is None]


def find_cost(table: CostTable, wanted: LatencyQuery) -> Cost | None:
    """Return the measured cost of exactly this form and scheme, None if it was not measured."""
    geometry, form, scheme = wanted.key
    return table.layers.get(geometry, {}).get(form, {}).get(scheme)


def estimate_ms(table: CostTable, form: LayerForm, macs: int, scheme: str) -> float | None:
    """Return the milliseconds of a form, interpolated by MACs between measured ranks of its method; None if no rank was measured.

    Args:
        macs: MACs of one call of the form.
    """
    if exact := find_cost(table, LatencyQuery(form, scheme, macs)):
        return exact.ms
    known = table.layers.get(form.geometry, {})
    alike = {costs[scheme].macs: costs[scheme].ms for name, costs in known.items() if scheme in costs and _is_same_method(name, form)}
    if not alike:
        return None
    below = max((m for m in alike if m <= macs), default=None)
    above = min((m for m in alike if m >= macs), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return alike[nearest] * (macs / nearest if below is None else max(1.0, macs / nearest))
    return alike[below] + (alike[above] - alike[below]) * ((macs - below) / (above - below) if above > below else 0.0)


def _is_same_method(name: str, form: LayerForm) -> bool:
    """Return whether a key of the table has the same method with the same options."""
    method, *rest = name.split(" ")
    options = [word for word in rest if "=" in word]
    return method == form.method and options == [f"{k}={v}" for k, v in sorted(form.options.items())]


def _describe_difference(table: CostTable, here: CostTable) -> str:
    """Say which condition of a table is another one here; "" where the table holds."""
    differing = differing_conditions(table, here).items()
    return next(
        (f"its {name.removeprefix('kind of ')} is {kept or 'none'}, here it is {now or 'none'}" for name, (kept, now) in differing), ""
    )
