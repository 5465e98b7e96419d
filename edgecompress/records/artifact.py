"""What is exported, and what proves it: quantization, tensors, parity, manifests, and what converters are asked and answer."""

from __future__ import annotations

from typing import Literal

from edgecompress.records.base import SCHEMA, Record


class QuantSpec(Record, frozen=True, kw_only=True):
    """How an artifact was quantized, in a scheme of `targets.SCHEMES`.

    Attributes:
        layers: The schemes of layers that differ from `scheme` (mixed precision), by qualified name.
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
    """The scheme chosen for a layer, and its sensitivity: of the network with this layer alone quantized, against the float network.

    Attributes:
        alone_agreement: How often it answers alike; None without scores.
    """

    layer: str
    scheme: str
    alone_sqnr_db: float
    alone_agreement: float | None = None
    why: str = ""


class PrecisionPlan(Record, frozen=True, kw_only=True):
    """Mixed precision, by simulation; of every format's files.

    Attributes:
        scheme: Of all layers that are not kept; `by_hand` are schemes that were given.
        before, reached: The network with every layer in `scheme`, and with the chosen ones kept, against the float network.
        wanted_agreement: The gate's, with a margin; None where agreement does not decide.
        note: What could not be reached.
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
        """The schemes of layers that differ from `scheme`."""
        return {**self.by_hand, **{each.layer: each.scheme for each in self.layers if each.scheme != self.scheme}}


class QuantizeResult(Record, frozen=True, kw_only=True):
    """What calibration found; `precision` is the plan of mixed precision, where one was asked for."""

    schema: int = SCHEMA
    specs: tuple[QuantSpec, ...]
    calibration_data: str
    input_range: tuple[float, float]
    layers: tuple[LayerQuantization, ...]
    precision: PrecisionPlan | None = None


class Preprocessing(Record, frozen=True, kw_only=True):
    """How an image becomes an input: resize the short side, centre crop, then `(x / 255 − mean) / std` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None


class TensorSpec(Record, frozen=True, kw_only=True):
    """One input or output of an artifact. `layout` is NCHW, NHWC or "" when the tensor is no image."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None


class Parity(Record, frozen=True, kw_only=True):
    """The artifact against the eager model of the same step, on real inputs.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: `max_abs` over the range (max − min) of the eager outputs.
        sqnr_db: 10·log10(Σ reference² / Σ difference²); capped at 200.
        top1_agreement: Fraction of samples with the same arg-max; None when no output is a vector of scores.
        values_sqnr_db: `sqnr_db` of the outputs that are no vectors of scores; None when all are.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    top1_agreement: float | None
    samples: int
    values_sqnr_db: float | None = None


class Departure(Record, frozen=True, kw_only=True):
    """Where an artifact first departs from the model it was made from.

    Attributes:
        layer: Qualified name of the first layer, in the order of computation, whose output departs; `op` is what it computes.
        expected, found: The model's and the artifact's value where they differ most, at `index` of the output of `sample`; `found` and
            `max_rel` are None where the artifact gives NaN or infinity.
        simulated_db: What a simulation of the quantization in PyTorch leaves there; None where nothing is quantized.
        scheme_alone: Whether that simulation departs as far as the artifact, so that the scheme and not the converter is at fault.
        exact: False when the time ran out: the layer departs, and one before it may too.
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
    """An op that the fast kernels (XNNPACK) do not take, how often it stands in the file, and why."""

    op: str
    count: int
    reason: str


class Artifact(Record, frozen=True, kw_only=True):
    """The manifest beside an exported file.

    Attributes:
        path: File name, beside the manifest; `name` is it without its ending.
        model: "dense" (the baseline) or "compressed".
        toolchain: Package versions the converter ran with.
        notes: Fallbacks the converter took.
        ops: How often each op stands in the file, as its format names them.
        undelegated: What XNNPACK does not take.
        bytecode_version: Of a TorchScript file for the lite interpreter; None for other formats.
        simulated: The artifact against a simulation of its scheme in PyTorch, where `parity` is against the model itself; None where
            nothing is quantized.
        departure: Of a file that was refused: the first layer that departs.
        top1: Accuracy of the artifact itself on the evaluation data; `data` says which, and how many samples.
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


class RefusedArtifact(Record, frozen=True, kw_only=True):
    """A file that was asked for and not published, why, and where it departs from the model, if that is why."""

    path: str
    error: str
    reason: str
    departure: Departure | None = None


class ExportResult(Record, frozen=True, kw_only=True):
    schema: int = SCHEMA
    artifacts: tuple[Artifact, ...]
    refused: tuple[RefusedArtifact, ...] = ()


class ConversionRequest(Record, frozen=True, kw_only=True):
    """What `export` sends to a converter program on stdin. Paths are absolute.

    Attributes:
        program: The exported program, `.pt2`, of a model in eval mode.
        calibration: `.safetensors` with `input_0`, `input_1`, …, each `(samples, …)`, in the program's layout; "" when the scheme
            needs none.
        route: Which of the format's toolchains, e.g. litert-torch or onnx2tf; "" for the only one.
        layers: The schemes of layers that differ from `scheme`, by qualified name.
        io: The type of the file's own inputs and outputs; int8 only for int8-static.
        layout: Of images in the file, for formats that have a choice (TFLite).
        name, preprocessing, labels: Written into the file where its format has a place for them.
        bytecode_version: For older runtimes of TorchScript; None for the newest.
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
    """What a converter program prints as its last line on stdout; the attributes are those of `Artifact`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    toolchain: dict[str, str]
    notes: tuple[str, ...] = ()
    ops: dict[str, int] = {}
    undelegated: tuple[UndelegatedOp, ...] = ()
    bytecode_version: int | None = None
