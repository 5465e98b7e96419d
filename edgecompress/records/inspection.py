"""What a model file holds, as `inspect` reads it from the file alone."""

from __future__ import annotations

from edgecompress.records.artifact import Preprocessing, TensorSpec, UndelegatedOp
from edgecompress.records.base import SCHEMA, Record


class InspectionRequest(Record, frozen=True, kw_only=True):
    """What `inspect` sends to the program that reads model files. `path` is absolute, `format` a key of `targets.FORMATS`."""

    path: str
    format: str


class ConstantTensor(Record, frozen=True, kw_only=True):
    """A tensor of weights and the op that reads it; `scales` is 0 for floats, 1 for a scale a tensor, else how many channels have one."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    scales: int = 0


class QuantizedTensors(Record, frozen=True, kw_only=True):
    """The quantized tensors of one dtype: constants or not, how many have one scale and how many a scale a channel, and their scales."""

    dtype: str
    constant: bool
    per_tensor: int
    per_channel: int
    smallest_scale: float | None = None
    largest_scale: float | None = None


class Delegation(Record, frozen=True, kw_only=True):
    """What XNNPACK takes: `taken` ops in `partitions` pieces; the others stay with the runtime's own kernels."""

    partitions: int
    taken: int
    undelegated: tuple[UndelegatedOp, ...] = ()


class Inspection(Record, frozen=True, kw_only=True):
    """A model file.

    Attributes:
        weights_bytes: Of all constant tensors.
        constants: The largest, first.
        delegation: None where the format's runtime decides nothing of the kind when it loads a file.
        peak_activation_bytes: Memory for tensors that are no constants; None where the file does not tell; `peak_from` says how it was
            found, or why it was not.
        name, preprocessing, labels: Where the file has them; preprocessing without sizes.
        bytecode_version: Of TorchScript.
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
