"""Measure what the layers of a network cost on a device, dense and in every form that a plan may choose."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from torch import nn

from edgecompress.options import AUTO
from edgecompress.planning.choices import candidates_of, forms_of
from edgecompress.planning.latencies import wanted_of
from edgecompress.planning.latency_tables.source import Network, Source
from edgecompress.planning.latency_tables.table import Wanted
from edgecompress.progress import Track, silent
from edgecompress.records import CostTable, ModelStats


def profile(
    model: nn.Module,
    stats: ModelStats,
    source: Source,
    network: Network,
    *,
    schemes: Sequence[str] = ("fp32", "int8-dynamic", "int8-static"),
    method: str = AUTO,
    options: Mapping[str, Any] | None = None,
    rank_multiple: int = 8,
    track: Track = silent,
) -> CostTable:
    """Return the costs of the whole dense network and of its layers; what the source's table has already is not measured again.

    Args:
        method: Whose forms; "auto" for those that a plan with latencies chooses from.

    Raises:
        ConfigError: Unknown method or option.
        DeviceError: The device failed or was too busy.
        ToolchainError: A converter failed.
    """
    choices = candidates_of(model, stats, forms_of(method, options, measured=True), multiple=rank_multiple, track=track)
    wanted = [Wanted(row.form, scheme, row.macs) for row in wanted_of(model, stats, choices.candidates) for scheme in schemes]
    for scheme in schemes:
        source.whole(network, scheme)
    source.measure(wanted)
    table = source.table
    here = {w.form.geometry for w in wanted}
    layers = {geometry: forms for geometry, forms in table.layers.items() if geometry in here}
    return msgspec.structs.replace(table, layers=layers, networks={network.key: table.networks[network.key]})
