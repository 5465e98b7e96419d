"""Exported files and their evidence: quantization, tensors, parity, manifests, and the requests and replies of converters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from edgecompress.records.base import SCHEMA, Record
from edgecompress.records.metrics import MetricSpec
from edgecompress.records.outputs import Fidelity, OutputSpec


class QuantSpec(Record, frozen=True, kw_only=True):
    """The quantization of an artifact, in a scheme of `targets.SCHEMES`.

    Attributes:
        layers: Qualified name → scheme of the layers that differ from `scheme` (mixed precision).
    """

    scheme: str
    per_channel: bool = False
    calibration_samples: int = 0
    layers: dict[str, str] = {}


class LayerQuantization(Record, frozen=True, kw_only=True):
    """Signal-to-quantization-noise ratio of a layer's int8 weight, 20·log10(‖W‖ / ‖W − Q(W)‖), in dB."""

    layer: str
    per_channel_sqnr_db: float
    per_tensor_sqnr_db: float


class LayerPrecision(Record, frozen=True, kw_only=True):
    """The scheme chosen for a layer, and the layer's sensitivity.

    Attributes:
        alone_sqnr_db, alone_agreement: SQNR and top-1 agreement with the float network when this layer alone is quantized; the agreement is
            None without class scores.
    """

    layer: str
    scheme: str
    alone_sqnr_db: float
    alone_agreement: float | None = None
    why: str = ""


class PrecisionPlan(Record, frozen=True, kw_only=True):
    """The choice of layers that stay out of integers (mixed precision), by simulation and for files of every format.

    Attributes:
        scheme: The scheme of all other layers.
        layers: The layers whose scheme was chosen.
        by_hand: Qualified name → scheme that the user gave.
        before, reached: Parity with the float network of every layer in `scheme`, and of the chosen schemes.
        wanted_agreement: The agreement that the gate asks for, with a margin; None where agreement does not decide.
        note: Why the wanted parity was not reached; "" when it was.
    """

    scheme: str
    layers: tuple[LayerPrecision, ...]
    by_hand: dict[str, str]
    before: Parity
    reached: Parity
    wanted_agreement: float | None
    note: str = ""

    @property
    def schemes(self) -> dict[str, str]:
        """Qualified name → scheme of the layers that differ from `scheme`."""
        return {**self.by_hand, **{each.layer: each.scheme for each in self.layers if each.scheme != self.scheme}}


class QuantizeResult(Record, frozen=True, kw_only=True):
    """Calibration, and how well each layer fits int8; `precision` is None unless mixed precision was asked for."""

    schema: int = SCHEMA
    specs: tuple[QuantSpec, ...]
    calibration_data: str
    input_range: tuple[float, float]
    layers: tuple[LayerQuantization, ...]
    precision: PrecisionPlan | None = None


class Preprocessing(Record, frozen=True, kw_only=True):
    """The preprocessing of an image: resize the short side, centre crop, then `(x / 255 − mean) / std` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None


class TensorSpec(Record, frozen=True, kw_only=True):
    """One input or output of an artifact; `layout` is NCHW, NHWC, or "" for a tensor that is no image."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None


class Parity(Record, frozen=True, kw_only=True):
    """Agreement of an artifact with the eager model of the same step, on real inputs.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: `max_abs` over the range (max − min) of the eager outputs.
        sqnr_db: 10·log10(Σ reference² / Σ difference²); capped at 200.
        top1_agreement: Fraction of samples, or positions of a map, with the same arg-max; None when no output is class scores.
        values_sqnr_db: `sqnr_db` of the outputs that are no class scores, of their worst channel; None when all of them are.
        integer_agreement: Fraction of the integers that are the same; None without integer outputs.
        worst_channel: The channel that has `values_sqnr_db`, in words; "" where channels have alike ranges.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    top1_agreement: float | None
    samples: int
    values_sqnr_db: float | None = None
    integer_agreement: float | None = None
    worst_channel: str = ""


class Departure(Record, frozen=True, kw_only=True):
    """The first layer at which an artifact departs from its model.

    Attributes:
        layer: Qualified name of the first layer, in the order of computation, whose output departs.
        op: The operation of the layer.
        expected, found: The values of model and artifact where they differ most, at `index` of the output for `sample`; `found` and
            `max_rel` are None where the artifact gives NaN or infinity.
        simulated_db: SQNR of this layer when the quantization is simulated in PyTorch; None where nothing is quantized.
        scheme_alone: Whether the simulation departs as far as the artifact, so that the scheme and not the converter is at fault.
        exact: False when the search ran out of time, and an earlier layer may depart too.
    """

    layer: str
    op: str
    expected: float
    found: float | None
    index: tuple[int, ...]
    sample: int
    max_rel: float | None
    sqnr_db: float
    simulated_db: float | None = None
    scheme_alone: bool | None = None
    exact: bool = True


class UndelegatedOp(Record, frozen=True, kw_only=True):
    """An op that the fast kernels (XNNPACK) do not take, its number in the file, and the reason."""

    op: str
    count: int
    reason: str


class Artifact(Record, frozen=True, kw_only=True):
    """The manifest beside an exported file.

    Attributes:
        path: File name, beside the manifest; `name` lacks the ending.
        model: "dense" (the baseline) or "compressed".
        toolchain: Versions of the converter's packages.
        notes: Fallbacks of the converter.
        ops: Op, as the format names it → number in the file.
        undelegated: Ops that XNNPACK does not take.
        bytecode_version: Version of a TorchScript file for the lite interpreter; None for other formats.
        parity: Conversion: agreement of the file with the network that it was converted from.
        fidelity: Compression: how much the file keeps of the dense network; None in manifests of before.
        kinds: The kind of each output, in the order of `outputs`.
        metric: The metric that bounds the loss; None where there is none and the fidelity does.
        metrics: Values of all metrics of the file itself, on the evaluation data, by name.
        simulated: Agreement with a simulation of the scheme in PyTorch; None where nothing is quantized.
        departure: The first layer that departs, of a file that was refused.
        top1: Top-1 accuracy of the artifact itself on the evaluation data; `data` gives their source and number.
    """

    schema: int = SCHEMA
    path: str
    name: str
    model: str
    format: str
    route: str
    sha256: str
    size_bytes: int
    quant: QuantSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    plan_sha256: str
    weights_sha256: str
    toolchain: dict[str, str]
    notes: tuple[str, ...] = ()
    ops: dict[str, int] = {}
    undelegated: tuple[UndelegatedOp, ...] = ()
    bytecode_version: int | None = None
    parity: Parity | None = None
    simulated: Parity | None = None
    departure: Departure | None = None
    top1: float | None = None
    data: str = ""
    created_at: str = ""
    kinds: tuple[OutputSpec, ...] = ()
    fidelity: Fidelity | None = None
    metric: MetricSpec | None = None
    metrics: dict[str, float] = {}


class RefusedArtifact(Record, frozen=True, kw_only=True):
    """A file that was not published, with the reason, and the layer where it departs from the model, if it does.

    Attributes:
        for_comparison: Whether nobody asked for the file, which is made only to compare with; its refusal is no failure of the export.
    """

    path: str
    error: str
    reason: str
    departure: Departure | None = None
    for_comparison: bool = False

    @property
    def cause(self) -> str:
        """The reason on one line, without the name of the file."""
        return " ".join(self.reason.split()).removeprefix(f"{self.path}: ")


class Refusal(NamedTuple):
    """Files that were refused for one cause, by an error of the class `error`."""

    paths: tuple[str, ...]
    error: str
    cause: str
    for_comparison: bool


def group_refusals(refused: Iterable[RefusedArtifact]) -> tuple[Refusal, ...]:
    """Return the causes for which files were refused, each with its files, in the order of the files."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for file in refused:
        groups.setdefault((file.error, file.cause, file.for_comparison), []).append(file.path)
    return tuple(Refusal(tuple(paths), *group) for group, paths in groups.items())


class CompressionCost(Record, frozen=True, kw_only=True):
    """What compression cost: the compressed PyTorch network against the dense one, on the inputs that artifacts are checked on.

    Attributes:
        fidelity: Of the compressed network.
        metric: The metric that bounds the loss; None where there is none and fidelity does.
        dense_metrics, metrics: Values of all metrics by name, of the dense and of the compressed network.
        max_loss: Largest loss of the metric, in its own unit.
        data: Source and number of the inputs.
    """

    fidelity: Fidelity
    metric: MetricSpec | None = None
    dense_metrics: dict[str, float] = {}
    metrics: dict[str, float] = {}
    max_loss: float | None = None
    data: str = ""


class ExportResult(Record, frozen=True, kw_only=True):
    """The files that an export published, and those that it refused.

    Attributes:
        compression: How much the compressed network itself keeps of the dense one; None in records of before.
    """

    schema: int = SCHEMA
    artifacts: tuple[Artifact, ...]
    refused: tuple[RefusedArtifact, ...] = ()
    compression: CompressionCost | None = None


class ConversionRequest(Record, frozen=True, kw_only=True):
    """The request that `export` sends to a converter program on stdin; paths are absolute.

    Attributes:
        program: The exported program, `.pt2`, of a model in eval mode.
        calibration: `.safetensors` with `input_0`, `input_1`, …, each `(samples, …)`, in the program's layout; "" for schemes that
            need no calibration.
        route: The toolchain, e.g. litert-torch or onnx2tf; "" for a format with one toolchain.
        layers: Qualified name → scheme of the layers that differ from `scheme`.
        io: Type of the file's inputs and outputs; int8 only for int8-static.
        layout: Layout of images in the file, for formats that have a choice (TFLite).
        name, preprocessing, labels: Metadata, written into files of formats that have a place for them.
        bytecode_version: TorchScript version for older runtimes; None for the newest.
    """

    program: str
    output: str
    scheme: str
    route: str = ""
    calibration: str = ""
    layers: dict[str, str] = {}
    io: Literal["float32", "int8"] = "float32"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    name: str = ""
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    bytecode_version: int | None = None


class ConversionReply(Record, frozen=True, kw_only=True):
    """The last line that a converter program prints on stdout; the attributes are those of `Artifact`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    toolchain: dict[str, str]
    notes: tuple[str, ...] = ()
    ops: dict[str, int] = {}
    undelegated: tuple[UndelegatedOp, ...] = ()
    bytecode_version: int | None = None
