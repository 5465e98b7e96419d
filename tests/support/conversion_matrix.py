"""The conversion matrix: network × factorization × (format, toolchain, scheme); each cell is converted, run in its runtime and judged.

Limits are those of `targets.SCHEMES`, and a quantized file that misses one is held against the simulation of its scheme, as an export does.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch.export import ExportedProgram

from edgecompress.artifacts.bisection import SignalLoss
from edgecompress.artifacts.gate import gate_failure
from edgecompress.devices.layouts import to_model_layout
from edgecompress.errors import ParityError
from edgecompress.factorizations import METHODS
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program, write_program
from edgecompress.network.parity import measure_parity, worst_sqnr_db
from edgecompress.network.surgery import forward
from edgecompress.quantization.simulation import Simulation, can_simulate
from edgecompress.records import ConversionReply, ConversionRequest, Parity, QuantSpec, Record, from_json, to_json
from edgecompress.targets import FORMATS, SCHEMES, TFLITE_TOOLCHAINS
from support.matrix_networks import DENSE, NETWORKS, made

BATCH: Final = 24  # cells a process
TIMEOUT_S: Final = 120  # of a cell, on a busy machine
CALIBRATION: Final = 32  # samples
WORKER: Final = Path(__file__).with_name("matrix_worker.py")
VARIANTS: Final = (DENSE, *METHODS)


class Output(NamedTuple):
    format: str
    route: str
    scheme: str


class Cell(NamedTuple):
    network: str
    method: str
    output: Output


OUTPUTS: Final = tuple(
    Output(name, route, scheme)
    for name, form in FORMATS.items()
    for route in (TFLITE_TOOLCHAINS if name == "tflite" else ("",))
    for scheme in reversed(form.schemes)
)
QUICKEST: Final = ("torchscript", "onnx", "litert-torch", "executorch", "onnx2tf")  # toolchains
# (network, factorization) for each output: what converts slowly where converting is fast.
COVERING: Final = (
    # tflite by litert-torch
    ("audio", "cp_epc"), ("audio", "tucker2_cp_epc"), ("vgg", "svd"), ("audio", "cp3"), ("detector", DENSE), ("vgg", "spatial_svd"),
    # tflite by onnx2tf
    ("audio", "channel_svd"), ("audio", "grouped_svd"), ("audio", "cp3"), ("audio", "tucker2"), ("audio", DENSE), ("detector", DENSE),
    # torchscript
    ("resnet20", DENSE), ("mobilenet_v2", "svd"), ("efficientnet_lite0", "grouped_svd"),
    # onnx
    ("resnet18", "channel_svd"), ("densenet", DENSE), ("vit", "tensor_train"), ("se_hardswish", "cp4"),
    # executorch
    ("unet", "tucker2"), ("audio", "cp_quantized"), ("detector", DENSE),
)  # fmt: skip


class Result(Record, frozen=True, kw_only=True):
    """What became of a cell.

    Attributes:
        outcome: "passed" the gate; "unsupported" by the toolchain, or the method takes no layer of the network; "scheme": the gate refused
            it, and so would the scheme simulated in PyTorch be; "wrong": the gate refused it and the converter is at fault; "broken": the
            toolchain failed or died. The last two are faults until explained.
        layers: How many are factorized.
    """

    network: str
    method: str
    format: str
    route: str
    scheme: str
    outcome: Literal["passed", "unsupported", "scheme", "wrong", "broken"]
    reason: str = ""
    layers: int = 0
    seconds: float = 0.0
    size_bytes: int = 0
    parity: Parity | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.network, self.method, Output(self.format, self.route, self.scheme))


class Model(NamedTuple):
    """A network under a factorization, as the converters are given it."""

    program: ExportedProgram
    calibration: Batch
    inputs: Batch
    reference: Batch
    layers: int


class Matrix:
    """Cells of the matrix; what they share is made once, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[tuple[str, str], Model | None] = {}

    def run(self, cells: Sequence[Cell], done: Callable[[Result], None] = lambda _: None) -> list[Result]:
        """Convert and judge cells, those of one toolchain in the same processes; tell each result as it is there."""
        found = []
        for result in self._results(cells):
            done(result)
            found.append(result)
        return found

    def _results(self, cells: Sequence[Cell]) -> Iterator[Result]:
        toolchains = dict.fromkeys((cell.output.format, cell.output.route) for cell in cells)
        for toolchain in toolchains:
            todo = [cell for cell in cells if (cell.output.format, cell.output.route) == toolchain]
            while todo:
                some, todo = todo[:BATCH], todo[BATCH:]
                for cell in (cell for cell in some if self.model(cell) is None):
                    yield _result(cell, "unsupported", f"{cell.method} takes no layer of {cell.network}")
                some = [cell for cell in some if self.model(cell) is not None]
                ended = self._start(some) if some else ""
                finished = [cell for cell in some if self._path(cell, "reply").exists() or self._path(cell, "refused").exists()]
                for cell in finished:
                    yield self._judge(cell)
                if len(finished) < len(some):
                    victim, *rest = some[len(finished) :]
                    yield _result(victim, "broken", ended, layers=self._layers(victim))
                    todo = rest + todo

    def model(self, cell: Cell) -> Model | None:
        """Return the model of a cell; its program, data and calibration lie in the folder."""
        key = cell.network, cell.method
        if key not in self.models:
            torch.manual_seed(0)
            given = made(*key)
            self.models[key] = None
            if given is not None:
                program = to_program(given.model, batches.take_samples(given.inputs, slice(1)), name=cell.network)
                calibration = batches.take_samples(given.calibration, slice(CALIBRATION))
                write_program(program, self._shared(cell, "pt2"))
                for suffix, batch in (("calibration", calibration), ("data", given.inputs)):
                    save_file({f"input_{i}": x.contiguous() for i, x in enumerate(batch)}, self._shared(cell, suffix))
                self.models[key] = Model(program, calibration, given.inputs, forward(given.model, given.inputs), given.layers)
        return self.models[key]

    def _layers(self, cell: Cell) -> int:
        model = self.model(cell)
        return model.layers if model else 0

    def _start(self, cells: Sequence[Cell]) -> str:
        """Let one process convert and run cells; return how it ended where it did not end well."""
        form = cells[0].output.format
        for cell in cells:
            self._path(cell, "json").write_bytes(to_json(self._request(cell)))
            data = self._path(cell, "data")
            data.unlink(missing_ok=True)
            data.symlink_to(self._shared(cell, "data"))
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        argv = [sys.executable, str(WORKER), form, *(str(self._path(cell, "json")) for cell in cells)]
        with (self.folder / f"{form}.log").open("ab") as log:
            try:
                code = subprocess.run(argv, cwd=work, stdout=log, stderr=log, check=False, timeout=TIMEOUT_S * len(cells)).returncode
            except subprocess.TimeoutExpired:
                return f"took more than {TIMEOUT_S} s a cell"
        return f"died by signal {-code}" if code < 0 else f"exit status {code}"

    def _request(self, cell: Cell) -> ConversionRequest:
        return ConversionRequest(
            program=str(self._shared(cell, "pt2")),
            output=str(self._path(cell, "file").with_suffix(FORMATS[cell.output.format].suffix)),
            scheme=cell.output.scheme,
            route=cell.output.route,
            calibration=str(self._shared(cell, "calibration")) if SCHEMES[cell.output.scheme].calibrated else "",
        )

    def _judge(self, cell: Cell) -> Result:
        """Return what became of a cell that was converted and run, or refused."""
        refused = self._path(cell, "refused")
        if refused.exists():
            kind, _, reason = refused.read_text().partition(": ")
            return _result(cell, "unsupported" if kind == "UnsupportedError" else "broken", reason, layers=self._layers(cell))
        reply = from_json(self._path(cell, "reply").read_bytes(), ConversionReply, source=str(cell))
        output = Path(self._request(cell).output)
        with np.load(self._path(cell, "npz")) as arrays:
            seconds = float(arrays["seconds"])
            outputs = to_model_layout([arrays[name] for name in arrays.files if name != "seconds"], reply.outputs)
        model = self.models[cell.network, cell.method]
        assert model is not None
        told: dict[str, Any] = {"layers": model.layers, "seconds": seconds, "size_bytes": output.stat().st_size}
        output.unlink()
        try:
            parity = measure_parity(outputs, model.reference)
        except ParityError as error:
            return _result(cell, "wrong", str(error), **told)
        failed, loss = gate(cell.output, model, outputs, parity)
        if not failed:
            return _result(cell, "passed", parity=parity, **told)
        if loss.simulated_db is not None:
            failed += f"; simulated in PyTorch the scheme leaves {loss.simulated_db:.1f} dB"
        return _result(cell, "scheme" if loss.is_scheme_at_fault else "wrong", failed, parity=parity, **told)

    def _path(self, cell: Cell, suffix: str) -> Path:
        return self.folder / f"{'-'.join((cell.network, cell.method, *filter(None, cell.output)))}.{suffix}"

    def _shared(self, cell: Cell, suffix: str) -> Path:
        return self.folder / f"{cell.network}-{cell.method}.{suffix}"


def every() -> list[Cell]:
    return [Cell(network, method, output) for output in OUTPUTS for network in NETWORKS for method in VARIANTS]


def parts(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the dense networks' cells and the others', those of one model and toolchain together, the quickest toolchains first."""
    order = {cell: number for number, cell in enumerate(cells)}
    models = {pair: number for number, pair in enumerate(dict.fromkeys((cell.network, cell.method) for cell in cells))}

    def place(cell: Cell) -> tuple[int, ...]:
        return QUICKEST.index(cell.output.route or cell.output.format), models[cell.network, cell.method], order[cell]

    ordered = sorted(cells, key=place)
    return [[cell for cell in ordered if (cell.method == DENSE) is dense] for dense in (True, False)]


def quick() -> list[Cell]:
    """Return one cell for each output, among which each network and each factorization occurs; the slow toolchains get small networks."""
    return [Cell(*pair, output) for pair, output in zip(COVERING, OUTPUTS, strict=True)]


def gate(output: Output, model: Model, outputs: Batch, parity: Parity) -> tuple[str, SignalLoss]:
    """Return why a cell does not pass the gate, "" when it passes, and the SQNR of its file and of its simulated scheme.

    The scheme is simulated, which is slow, only where that may change the result.
    """
    limits, quant, loss = SCHEMES[output.scheme].gate, QuantSpec(scheme=output.scheme), SignalLoss(parity.sqnr_db)
    if can_simulate(quant) and gate_failure(parity, limits, SignalLoss(parity.sqnr_db, np.inf)):
        simulated = Simulation(model.program, quant, model.calibration, format=output.format).run(model.inputs)
        loss = SignalLoss(parity.sqnr_db, worst_sqnr_db(simulated, model.reference))
    return gate_failure(parity, limits, loss), loss


def _result(cell: Cell, outcome: str, reason: str = "", **told: Any) -> Result:
    return Result(network=cell.network, method=cell.method, **cell.output._asdict(), outcome=outcome, reason=reason, **told)
