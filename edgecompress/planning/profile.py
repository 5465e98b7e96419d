"""Measure the latency of a network's layers on a device, dense and in every form that a plan may choose."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from torch import nn

from edgecompress.options import AUTO
from edgecompress.planning.fitted_candidates import find_candidates, methods_to_try
from edgecompress.planning.latencies import candidate_forms
from edgecompress.planning.latency_tables.measured_table import MeasuredCostTable, NetworkToMeasure
from edgecompress.planning.latency_tables.table import LatencyQuery
from edgecompress.progress import Track, track_silently
from edgecompress.records import CostTable, ModelStats


def profile(
    model: nn.Module,
    stats: ModelStats,
    costs: MeasuredCostTable,
    network: NetworkToMeasure,
    *,
    schemes: Sequence[str] = ("fp32", "int8-dynamic", "int8-static"),
    method: str = AUTO,
    options: Mapping[str, Any] | None = None,
    rank_multiple: int = 8,
    track: Track = track_silently,
) -> CostTable:
    """Return the costs of the whole dense network and of its layers; entries that the table has already are not measured again.

    Args:
        costs: The table to fill, with its device.
        network: The dense network, to be measured as a whole.
        method: Method whose forms are measured; "auto" for the forms that a plan with latencies chooses from.

    Raises:
        ConfigError: The method or an option is unknown.
        DeviceError: The device failed or was too busy.
        ToolchainError: A converter failed.
    """
    fitted = find_candidates(model, stats, methods_to_try(method, options, measured=True), multiple=rank_multiple, track=track)
    rows = candidate_forms(model, stats, fitted.candidates)
    queries = [LatencyQuery(row.form, scheme, row.macs) for row in rows for scheme in schemes]
    for scheme in schemes:
        costs.network_cost(network, scheme)
    costs.measure_missing(queries)
    table = costs.table
    here = {query.form.geometry for query in queries}
    layers = {geometry: forms for geometry, forms in table.layers.items() if geometry in here}
    return msgspec.structs.replace(table, layers=layers, networks={network.key: table.networks[network.key]})
