"""What the layers of a run's network cost on a device: measured when a plan needs it, or beforehand."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

import torch
from torch import nn

from edgecompress.artifacts.converter_process import convert
from edgecompress.files import sha256
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program, write_program
from edgecompress.network.weights import fingerprint
from edgecompress.options import budget_of, cost_scheme_of, parse_method
from edgecompress.pipeline.context import RunSteps
from edgecompress.planning.latencies import DeviceCosts
from edgecompress.planning.latency_tables.measured_table import MeasuredCostTable, NetworkToMeasure, open_cost_table
from edgecompress.planning.profile import profile
from edgecompress.planning.reduced_network import form_pairs, reduce_network
from edgecompress.quantization.calibration import save_calibration
from edgecompress.records import ConversionRequest, CostTable, ModelStats
from edgecompress.runs import key
from edgecompress.targets import SCHEMES, TARGETS

LOCAL: Final = "local://"
CALIBRATION: Final = 2  # inputs; ranges do not matter to time


class CostSteps(RunSteps):
    """The device of a run's options and what is measured there."""

    def costs(self, stats: ModelStats) -> DeviceCosts | None:
        """Return where latencies to plan with come from; None where neither a device nor a latency is asked for."""
        o = self.options
        if not self._timed:
            return None
        source, scheme = self._source(o.device or ("" if o.table else LOCAL)), cost_scheme_of(o)
        whole = source.network_cost(self._network_of(stats), scheme)
        return DeviceCosts(scheme, source.conditions, whole.ms, source.latencies_of, whole.layers_ms, source.remeasure)

    def profile(self, stats: ModelStats, schemes: tuple[str, ...], *, refresh: bool = False, noisy: bool = False) -> tuple[CostTable, Path]:
        """Measure what plans for this network will ask for; return the network's part of the table and the table's path."""
        source, form = self._source(self.options.device or LOCAL, refresh=refresh, noisy=noisy), parse_method(self.options)
        multiple = TARGETS[self.options.target].rank_multiple
        network = self._network_of(stats)
        found = profile(
            self.dense,
            stats,
            source,
            network,
            schemes=schemes,
            method=form.method,
            options=form.options,
            rank_multiple=multiple,
            track=self.track,
        )
        return found, source.path

    @property
    def costs_from(self) -> tuple[str, ...]:
        """What a plan depends on where it is made with latencies: where they come from, not what was measured, which never repeats."""
        o = self.options
        if not self._timed:
            return ()
        table = sha256(Path(o.table)) if o.table and not o.device and Path(o.table).is_file() else o.table
        return (o.device, table, cost_scheme_of(o), str(o.threads))

    @property
    def _timed(self) -> bool:
        """Whether a device or a latency is asked for."""
        o, budget = self.options, budget_of(self.options)
        return bool(o.device or o.table or budget.latency_ms or budget.speedup)

    def _source(self, device: str, *, refresh: bool = False, noisy: bool = False) -> MeasuredCostTable:
        o = self.options
        return open_cost_table(
            device=device, table=Path(o.table) if o.table else None, threads=o.threads, refresh=refresh, noisy=noisy, track=self.track
        )

    def _network_of(self, stats: ModelStats) -> NetworkToMeasure:
        shapes = [(tuple(x.shape), str(x.dtype)) for x in self.recipe.example_inputs]

        def write(paths: tuple[Path, Path], scheme: str) -> None:
            requests = [self._request(*each, scheme) for each in zip((self.dense, reduce_network(self.dense, stats)), paths, strict=True)]
            with ThreadPoolExecutor(len(requests)) as pool:
                list(pool.map(self._convert, requests))

        return NetworkToMeasure(self.recipe.name, key(fingerprint(self.dense), shapes), stats.macs, form_pairs(self.dense, stats), write)

    def _convert(self, request: ConversionRequest) -> None:
        convert("tflite", request, timeout_s=self.options.convert_timeout_s, memory_gb=self.options.convert_memory_gb)

    def _request(self, model: nn.Module, path: Path, scheme: str) -> ConversionRequest:
        """Return what writes a network's TFLite file, its ranges from a few inputs."""
        program, calibration = path.with_suffix(".pt2"), path.with_suffix(".safetensors")
        write_program(to_program(model, self.recipe.example_inputs, name=self.recipe.name), program)
        calibrated = SCHEMES[scheme].calibrated
        if calibrated:
            save_calibration(self._few(), calibration)
        seen = str(calibration) if calibrated else ""
        io: Literal["int8", "float32"] = "int8" if self.options.io == "int8" and scheme == "int8-static" else "float32"
        return ConversionRequest(program=str(program), output=str(path), scheme=scheme, calibration=seen, io=io)

    def _few(self) -> Batch:
        data = self.data("calibration")
        if data is not None:
            return self._fetch(data, CALIBRATION, labelled=False)[0]
        torch.manual_seed(self.options.seed)
        drawn = (torch.rand_like(x) if x.is_floating_point() else torch.zeros_like(x) for x in self.recipe.example_inputs)
        return batches.check(tuple(drawn), "inputs drawn at random")
