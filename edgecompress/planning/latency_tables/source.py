"""Costs for one network: from a table, measured on a device where the table lacks them."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgecompress.devices import open_device
from edgecompress.devices.inventory import apply_entry, resolve_device
from edgecompress.devices.runners.execute import measure_latencies
from edgecompress.errors import ConfigError
from edgecompress.planning.latency_tables.measure import SMALLEST, cost, fill, quietly
from edgecompress.planning.latency_tables.shares import layers_share
from edgecompress.planning.latency_tables.table import (
    Wanted,
    conditions_of,
    cost_of,
    empty,
    lacking,
    load,
    ms_of,
    path_of,
    save,
    where,
    with_layers,
)
from edgecompress.progress import Track, silent
from edgecompress.records import CostTable, LayerForm, Measuring, NetworkCost

WARMUP_S: Final = 0.02  # of each layer, beside its first inference
REPETITIONS: Final = 50


class Network(NamedTuple):
    """A dense network whose whole latency is wanted too.

    Attributes:
        name: For messages; `key` is a hash of what its latency depends on.
        layers: Each as it is and as it is in the reduced network, and how often it is called.
        write: Writes the TFLite files of the dense network and of the reduced one, in a scheme.
    """

    name: str
    key: str
    macs: int
    layers: Sequence[tuple[LayerForm, LayerForm, float]]
    write: Callable[[tuple[Path, Path], str], None]


class Source:
    """A cost table and the device it is filled on, if there is one."""

    def __init__(
        self, path: Path, table: CostTable, device: str, how: Measuring, track: Track, *, refresh: bool = False, noisy: bool = False
    ) -> None:
        self.path = path
        self.table = table
        self.device = device
        self.how = how
        self.track = track
        self.noisy = noisy
        self.fresh: set[tuple[str, ...]] | None = set() if refresh else None

    @property
    def where(self) -> str:
        """Device, runtime and threads, for people."""
        return where(self.table)

    def price(self, wanted: Sequence[Wanted]) -> list[float | None]:
        """Return milliseconds of each form, measured now where the table has it not; None for one that no file can be written for."""
        self.measure(wanted)
        return [ms_of(self.table, w.form, w.macs, w.scheme) for w in wanted]

    def measure(self, wanted: Sequence[Wanted]) -> None:
        """Measure what the table lacks, all of it once where it is to be refreshed; nothing without a device.

        Raises:
            DeviceError: The device failed, is another one now, or is too busy to measure on.
        """
        missing = lacking(self.table, wanted)
        if self.fresh is not None:
            missing = [w for key, w in {w.key: w for w in wanted}.items() if key not in self.fresh]
            self.fresh |= {w.key for w in missing}
        if missing and self.device:
            with open_device(self.device) as connected:
                self._keep(fill(connected, self.table, missing, self.how, noisy=self.noisy, track=self.track))

    def again(self, chosen: Sequence[Wanted]) -> bool:
        """Measure once more those forms that were not yet, in turns with their dense layers; return whether there were any.

        Of many forms a plan chooses those that came out fast, some of them by chance: what it then predicts is too little. A second
        measurement knows nothing of that choice and takes the place of the first. It is scaled by how fast the dense layers were then and
        now, so that a layer's forms stay comparable.

        Raises:
            DeviceError: As of `measure`.
        """
        if not self.device:
            return False
        self.measure(chosen)
        once = {w.key: w for w in chosen if (known := cost_of(self.table, w)) and not known.again}
        if not once:
            return False
        dense = {d.key: d for w in once.values() if cost_of(self.table, d := w.dense)}
        with open_device(self.device) as connected:
            now = fill(connected, empty(self.table), [*dense.values(), *once.values()], self.how, noisy=self.noisy, track=self.track)
        before, after = (sum(c.ms for d in dense.values() if (c := cost_of(table, d))) for table in (self.table, now))
        found = {key: c for key, w in once.items() if (c := cost_of(now, w))}
        drift = before / after if after else 1.0
        replaced = {key: msgspec.structs.replace(c, ms=drift * c.ms, again=True) for key, c in found.items()}
        self._keep(with_layers(self.table, replaced))
        return bool(replaced)

    def whole(self, network: Network, scheme: str) -> NetworkCost:
        """Return what the dense network costs.

        Raises:
            ConfigError: The table has it not, and there is no device to measure it on.
            EdgeCompressError: It cannot be converted in this scheme, or the device failed.
        """
        known = self.table.networks.get(network.key, {})
        again = self.fresh is not None and (network.key, scheme) not in self.fresh
        if scheme in known and not again:
            return known[scheme]
        if not self.device:
            raise ConfigError(
                f"{self.path}: {network.name} as a whole was not measured in {scheme}; run `edgecompress profile` with --device"
            )
        with tempfile.TemporaryDirectory(prefix="edgecompress-") as name, open_device(self.device) as connected:
            files = Path(name, "dense.tflite"), Path(name, "reduced.tflite")
            network.write(files, scheme)
            alone = cost(quietly(connected, files[:1], self.how, noisy=self.noisy)[0], network.macs)
            share = layers_share(connected, files, network.layers, scheme, self.how, noisy=self.noisy)
        found = NetworkCost(**msgspec.structs.asdict(alone), layers_ms=share * alone.ms)
        self._keep(msgspec.structs.replace(self.table, networks={**self.table.networks, network.key: {**known, scheme: found}}))
        if self.fresh is not None:
            self.fresh.add((network.key, scheme))
        return found

    def _keep(self, table: CostTable) -> None:
        self.table = table
        save(table, self.path)


def open_source(
    *, device: str, table: Path | None, threads: int, refresh: bool = False, noisy: bool = False, track: Track = silent
) -> Source:
    """Return the costs of a device, or of a table alone where `device` is "".

    Args:
        device: A URL, or a name of the inventory.
        table: This user's own for the device where it is None.
        refresh: Measure anew what is asked for.
        noisy: Take what a busy device measures, too.

    Raises:
        ConfigError: No such table, or one of another device, runtime or number of threads.
        DeviceError: The device cannot be used.
    """
    how = Measuring(threads=threads, repetitions=REPETITIONS, warmup_s=WARMUP_S)
    if not device:
        if table is None:
            raise ConfigError("costs: neither a device nor a table; give --device or --table")
        found = load(table)
        if found.threads != threads:
            raise ConfigError(f"{table}: its threads are {found.threads}, here they are {threads}; give --threads {found.threads}")
        return Source(table, found, "", how, track)
    entry = resolve_device(device, None)
    how = apply_entry(how, entry)
    with open_device(entry.url) as connected:
        here = conditions_of(measure_latencies(connected, [SMALLEST], msgspec.structs.replace(how, repetitions=1))[0])
    path = table or path_of(here)
    return Source(path, load(path, conditions=here), entry.url, how, track, refresh=refresh, noisy=noisy)
