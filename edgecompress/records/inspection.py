"""The contents of a model file, as `inspect` reads them from the file alone."""

from __future__ import annotations

from edgecompress.records.artifact import Preprocessing, TensorSpec, UndelegatedOp
from edgecompress.records.base import SCHEMA, Record


class InspectionRequest(Record, frozen=True, kw_only=True):
    """The request of `inspect` to the program that reads model files; `path` is absolute, `format` a key of `targets.FORMATS`."""

    path: str
    format: str


class ConstantTensor(Record, frozen=True, kw_only=True):
    """A weight tensor and the op that reads it; `scales` is 0 for floats, 1 for one scale per tensor, else the number of channels."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    scales: int = 0


class QuantizedTensors(Record, frozen=True, kw_only=True):
    """The quantized tensors of one dtype, constants or activations: the numbers with one scale and with a scale per channel."""

    dtype: str
    constant: bool
    per_tensor: int
    per_channel: int
    smallest_scale: float | None = None
    largest_scale: float | None = None


class Delegation(Record, frozen=True, kw_only=True):
    """The ops that XNNPACK takes, `taken` in `partitions` pieces; the others stay with the runtime's own kernels."""

    partitions: int
    taken: int
    undelegated: tuple[UndelegatedOp, ...] = ()


class Inspection(Record, frozen=True, kw_only=True):
    """The contents of a model file.

    Attributes:
        weights_bytes: Size of all constant tensors.
        constants: The largest constants, largest first.
        delegation: None for formats whose runtime does not delegate when it loads a file.
        peak_activation_bytes: Memory for tensors that are no constants; None where the file does not tell.
        peak_from: How the peak was found, or why not.
        name, preprocessing, labels: Metadata of the file, if it has any; preprocessing lacks sizes.
        bytecode_version: TorchScript version; None for other formats.
    """

    schema: int = SCHEMA
    path: str
    format: str
    sha256: str
    size_bytes: int
    weights_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[str, int]
    constants: tuple[ConstantTensor, ...] = ()
    quantized: tuple[QuantizedTensors, ...] = ()
    delegation: Delegation | None = None
    peak_activation_bytes: int | None = None
    peak_from: str = ""
    name: str = ""
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    bytecode_version: int | None = None
    notes: tuple[str, ...] = ()
