"""Latencies of the layers of a run's network on a device: measured when a plan needs them, or beforehand by `profile`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from torch import nn

from edgecompress.artifacts.converter_process import run_converter
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program, write_program
from edgecompress.options import cost_scheme_of, parse_method
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.step_keys import is_timed
from edgecompress.planning.latencies import DeviceCosts
from edgecompress.planning.latency_tables.measured_table import MeasuredCostTable, NetworkToMeasure, open_cost_table
from edgecompress.planning.profile import profile
from edgecompress.planning.reduced_network import form_pairs, reduce_network
from edgecompress.quantization.calibration import save_calibration
from edgecompress.records import ConversionRequest, CostTable, ModelStats
from edgecompress.runs import hash_values
from edgecompress.targets import SCHEMES, TARGETS

LOCAL: Final = "local://"
CALIBRATION_SAMPLES: Final = 2  # Ranges of activations do not change how long a layer takes.


class Profile(NamedTuple):
    """The latencies of one network, and the file of the table that holds them."""

    table: CostTable
    path: Path


def open_costs(context: RunContext, stats: ModelStats) -> DeviceCosts | None:
    """Return where the latencies that a plan goes by come from; None where neither a device nor a latency is asked for."""
    o = context.options
    if not is_timed(o):
        return None
    source, scheme = _open_cost_table(context, o.device or ("" if o.table else LOCAL)), cost_scheme_of(o)
    whole = source.network_cost(_describe_network(context, stats), scheme)
    return DeviceCosts(scheme, source.conditions, whole.ms, source.latencies_of, whole.layers_ms, source.remeasure)


def profile_network(
    context: RunContext, stats: ModelStats, schemes: tuple[str, ...], *, refresh: bool = False, noisy: bool = False
) -> Profile:
    """Measure all that plans for this network will ask for, and keep it in the table of the device.

    Args:
        schemes: Schemes of TFLite files.
        refresh: Measure again what the table has.
        noisy: Keep what a busy device measures.
    """
    source = _open_cost_table(context, context.options.device or LOCAL, refresh=refresh, noisy=noisy)
    form = parse_method(context.options)
    table = profile(
        context.dense,
        stats,
        source,
        _describe_network(context, stats),
        schemes=schemes,
        method=form.method,
        options=form.options,
        rank_multiple=TARGETS[context.options.target].rank_multiple,
        track=context.track,
    )
    return Profile(table, source.path)


def _open_cost_table(context: RunContext, device: str, *, refresh: bool = False, noisy: bool = False) -> MeasuredCostTable:
    o = context.options
    table = Path(o.table) if o.table else None
    return open_cost_table(device=device, table=table, threads=o.threads, refresh=refresh, noisy=noisy, track=context.track)


def _describe_network(context: RunContext, stats: ModelStats) -> NetworkToMeasure:
    """Return the dense network as latency tables know it: its key, its layers, and how its TFLite files are written."""
    dense = context.dense
    shapes = [(tuple(x.shape), str(x.dtype)) for x in context.recipe.example_inputs]

    def write_files(paths: tuple[Path, Path], scheme: str) -> None:
        models = (dense, reduce_network(dense, stats))
        requests = [_write_request(context, model, path, scheme) for model, path in zip(models, paths, strict=True)]
        with ThreadPoolExecutor(len(requests)) as pool:
            list(pool.map(lambda request: _convert(context, request), requests))

    network_key = hash_values(context.network.fingerprint, shapes)
    return NetworkToMeasure(context.recipe.name, network_key, stats.macs, form_pairs(dense, stats), write_files)


def _convert(context: RunContext, request: ConversionRequest) -> None:
    run_converter("tflite", request, timeout_s=context.options.convert_timeout_s, memory_gb=context.options.convert_memory_gb)


def _write_request(context: RunContext, model: nn.Module, path: Path, scheme: str) -> ConversionRequest:
    """Write what a converter reads beside `path`, and return the request for the network's TFLite file."""
    program, calibration = path.with_suffix(".pt2"), path.with_suffix(".safetensors")
    write_program(to_program(model, context.recipe.example_inputs, name=context.recipe.name), program)
    calibrated = SCHEMES[scheme].calibrated
    if calibrated:
        save_calibration(_fetch_few_inputs(context), calibration)
    io: Literal["int8", "float32"] = "int8" if context.options.io == "int8" and SCHEMES[scheme].can_have_int8_io else "float32"
    return ConversionRequest(
        program=str(program), output=str(path), scheme=scheme, calibration=str(calibration) if calibrated else "", io=io
    )


def _fetch_few_inputs(context: RunContext) -> Batch:
    dataset = context.data.dataset("calibration")
    if dataset is not None:
        return context.data.fetch(dataset, CALIBRATION_SAMPLES, labelled=False)[0]
    torch.manual_seed(context.options.seed)
    drawn = (torch.rand_like(x) if x.is_floating_point() else torch.zeros_like(x) for x in context.recipe.example_inputs)
    return batches.check_batch(tuple(drawn), "inputs drawn at random")
