"""Describe the contents of a file of the lite interpreter without torch: no part of the file is loaded or run."""

import msgspec

from converters.torchscript.file import EXTRA_FILE, FileDescription, read_bytecode, read_entry
from edgecompress.records import ConstantTensor, Inspection, QuantizedTensors, TensorSpec


def inspect(content: bytes) -> Inspection:
    """Return the contents of a TorchScript file."""
    bytecode = read_bytecode(content)
    described = _read_description(content)
    notes = () if described.inputs else ("TorchScript keeps no shapes, and this file has no edgecompress.json that tells them",)
    packed = [constant for constant in bytecode.constants if constant.scales]
    kinds = sorted({constant.dtype for constant in packed})
    return Inspection(
        path="",
        format="",
        sha256="",
        size_bytes=0,
        weights_bytes=sum(constant.size_bytes for constant in bytecode.constants),
        inputs=described.inputs or tuple(TensorSpec(name=name, shape=(), dtype="unknown") for name in bytecode.arguments),
        outputs=described.outputs,
        ops=dict(sorted(bytecode.ops.items(), key=lambda item: -item[1])),
        constants=tuple(
            ConstantTensor(op=c.op, shape=c.shape, dtype=c.dtype, size_bytes=c.size_bytes, scales=c.scales) for c in bytecode.constants
        ),
        quantized=tuple(
            QuantizedTensors(
                dtype=kind,
                constant=True,
                per_tensor=sum(c.scales == 1 for c in packed if c.dtype == kind),
                per_channel=sum(c.scales > 1 for c in packed if c.dtype == kind),
            )
            for kind in kinds
        ),
        peak_from="not told: TorchScript keeps no shapes of what it computes, and the file is not run",
        name=described.name,
        preprocessing=described.preprocessing,
        labels=described.labels,
        bytecode_version=bytecode.version,
        notes=notes,
    )


def _read_description(content: bytes) -> FileDescription:
    try:
        return msgspec.json.decode(read_entry(content, f"extra/{EXTRA_FILE}"), type=FileDescription)
    except KeyError:
        return FileDescription()
