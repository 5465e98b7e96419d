"""A cost table together with the device on which its missing entries are measured."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgecompress.devices import open_device
from edgecompress.devices.inventory import apply_entry, resolve_device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.errors import ConfigError
from edgecompress.planning.latency_tables.layer_fraction import measure_layer_fraction
from edgecompress.planning.latency_tables.measurement import SMALLEST_MODEL, cost_of_result, measure_layers, measure_undisturbed
from edgecompress.planning.latency_tables.table import (
    LatencyQuery,
    add_layers,
    describe_conditions,
    estimate_ms,
    find_cost,
    load_table,
    missing_queries,
    save_table,
    table_for_result,
    table_path,
    without_costs,
)
from edgecompress.progress import Track, track_silently
from edgecompress.records import BenchmarkOptions, CostTable, LayerForm, NetworkCost

WARMUP_S: Final = 0.02  # for each layer, after its first inference
REPETITIONS: Final = 50


class NetworkToMeasure(NamedTuple):
    """A dense network to be measured as a whole.

    Attributes:
        name: Name for messages.
        key: Hash of everything that the network's latency depends on.
        layers: Each layer's form in the dense and in the reduced network, and how often it is called.
        write: Writes the TFLite files of the dense network and of the reduced one, in a scheme.
    """

    name: str
    key: str
    macs: int
    layers: Sequence[tuple[LayerForm, LayerForm, float]]
    write: Callable[[tuple[Path, Path], str], None]


class MeasuredCostTable:
    """A cost table that measures missing entries on its device, if it has one, and saves itself after each measurement."""

    def __init__(
        self, path: Path, table: CostTable, device: str, how: BenchmarkOptions, track: Track, *, refresh: bool = False, noisy: bool = False
    ) -> None:
        self.path = path
        self.table = table
        self.device = device
        self.how = how
        self.track = track
        self.noisy = noisy
        self.fresh: set[tuple[str, ...]] | None = set() if refresh else None

    @property
    def conditions(self) -> str:
        """Device, runtime and threads, for people."""
        return describe_conditions(self.table)

    def latencies_of(self, wanted: Sequence[LatencyQuery]) -> list[float | None]:
        """Return the milliseconds of each form, measured now if missing; None for a form that no file can be written for."""
        self.measure_missing(wanted)
        return [estimate_ms(self.table, w.form, w.macs, w.scheme) for w in wanted]

    def measure_missing(self, wanted: Sequence[LatencyQuery]) -> None:
        """Measure the wanted forms that the table lacks, or every one once if it is to be refreshed; without a device, do nothing.

        Raises:
            DeviceError: The device failed, is another one now, or is too busy to measure on.
        """
        missing = missing_queries(self.table, wanted)
        if self.fresh is not None:
            missing = [w for key, w in {w.key: w for w in wanted}.items() if key not in self.fresh]
            self.fresh |= {w.key for w in missing}
        if missing and self.device:
            with open_device(self.device) as connected:
                self._save(measure_layers(connected, self.table, missing, self.how, noisy=self.noisy, track=self.track))

    def remeasure(self, chosen: Sequence[LatencyQuery]) -> bool:
        """Measure the forms that were measured only once a second time, in turns with their dense layers; return whether any were.

        Of many forms a plan chooses those that came out fast, some of them by chance, so it predicts too low a latency. A second
        measurement is independent of that choice and replaces the first. It is scaled by the speed of the dense layers then and now, so
        that a layer's forms stay comparable.

        Raises:
            DeviceError: As in `measure_missing`.
        """
        if not self.device:
            return False
        self.measure_missing(chosen)
        once = {w.key: w for w in chosen if (known := find_cost(self.table, w)) and not known.again}
        if not once:
            return False
        dense = {d.key: d for w in once.values() if find_cost(self.table, d := w.dense)}
        with open_device(self.device) as connected:
            wanted = [*dense.values(), *once.values()]
            now = measure_layers(connected, without_costs(self.table), wanted, self.how, noisy=self.noisy, track=self.track)
        before, after = (sum(c.ms for d in dense.values() if (c := find_cost(table, d))) for table in (self.table, now))
        found = {key: c for key, w in once.items() if (c := find_cost(now, w))}
        drift = before / after if after else 1.0
        replaced = {key: msgspec.structs.replace(c, ms=drift * c.ms, again=True) for key, c in found.items()}
        self._save(add_layers(self.table, replaced))
        return bool(replaced)

    def network_cost(self, network: NetworkToMeasure, scheme: str) -> NetworkCost:
        """Return the cost of the dense network as a whole.

        Raises:
            ConfigError: The table lacks it, and no device is given to measure it on.
            EdgeCompressError: The network cannot be converted in this scheme, or the device failed.
        """
        known = self.table.networks.get(network.key, {})
        stale = self.fresh is not None and (network.key, scheme) not in self.fresh
        if scheme in known and not stale:
            return known[scheme]
        if not self.device:
            raise ConfigError(
                f"{self.path}: {network.name} as a whole was not measured in {scheme}; run `edgecompress profile` with --device"
            )
        with tempfile.TemporaryDirectory(prefix="edgecompress-") as name, open_device(self.device) as connected:
            files = Path(name, "dense.tflite"), Path(name, "reduced.tflite")
            network.write(files, scheme)
            alone = cost_of_result(measure_undisturbed(connected, files[:1], self.how, noisy=self.noisy)[0], network.macs)
            fraction = measure_layer_fraction(connected, files, network.layers, scheme, self.how, noisy=self.noisy)
        found = NetworkCost(**msgspec.structs.asdict(alone), layers_ms=fraction * alone.ms)
        self._save(msgspec.structs.replace(self.table, networks={**self.table.networks, network.key: {**known, scheme: found}}))
        if self.fresh is not None:
            self.fresh.add((network.key, scheme))
        return found

    def _save(self, table: CostTable) -> None:
        self.table = table
        save_table(table, self.path)


def open_cost_table(
    *, device: str, table: Path | None, threads: int, refresh: bool = False, noisy: bool = False, track: Track = track_silently
) -> MeasuredCostTable:
    """Return the cost table of a device, or a table alone if `device` is "".

    Args:
        device: A URL, or a name in the inventory.
        table: The table's file; None for this user's own table of the device.
        refresh: Measure every requested entry anew.
        noisy: Also accept measurements on a busy device.

    Raises:
        ConfigError: The table does not exist, or is of another device, runtime or number of threads.
        DeviceError: The device cannot be used.
    """
    how = BenchmarkOptions(threads=threads, repetitions=REPETITIONS, warmup_s=WARMUP_S)
    if not device:
        if table is None:
            raise ConfigError("costs: neither a device nor a table; give --device or --table")
        found = load_table(table)
        if found.threads != threads:
            raise ConfigError(f"{table}: its threads are {found.threads}, here they are {threads}; give --threads {found.threads}")
        return MeasuredCostTable(table, found, "", how, track)
    entry = resolve_device(device, None)
    how = apply_entry(how, entry)
    with open_device(entry.url) as connected:
        here = table_for_result(measure_latencies(connected, [SMALLEST_MODEL], msgspec.structs.replace(how, repetitions=1))[0])
    path = table or table_path(here)
    return MeasuredCostTable(path, load_table(path, conditions=here), entry.url, how, track, refresh=refresh, noisy=noisy)
