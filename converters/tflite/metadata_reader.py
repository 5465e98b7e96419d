"""Read the metadata that standard tooling, and tflite_metadata.py, put into a TFLite file: name, normalisation of the image, labels."""

import io
import zipfile
from dataclasses import dataclass
from typing import Any, Final

import flatbuffers
from flatbuffers.number_types import Float32Flags, Uint8Flags
from flatbuffers.table import Table

from edgecompress.records import Preprocessing

ENTRY: Final = b"TFLITE_METADATA"
NORMALIZATION: Final = 1  # of the union ProcessUnitOptions
PIXEL: Final = 255.0  # metadata normalise pixels of 0 … 255, `Preprocessing` values of 0 … 1
TEXT_BYTES: Final = 1 << 20
ITEMS: Final = 1000


@dataclass(frozen=True)
class Metadata:
    """What was found; `size_bytes` is what it takes among the model's buffers."""

    name: str = ""
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    size_bytes: int = 0


def read(content: bytes, model: Any) -> Metadata:
    """Return the file's metadata; empty where it has none.

    Args:
        model: The model, as flatbuffer_utils reads it.
    """
    entry = next((entry for entry in model.metadata or () if entry.name == ENTRY), None)
    if entry is None:
        return Metadata(labels=_labels(content))
    data = bytearray(bytes(model.buffers[entry.buffer].data))
    root = Table(data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))
    return Metadata(name=_text(root, 0), preprocessing=_preprocessing(root), labels=_labels(content), size_bytes=len(data))


def _labels(content: bytes) -> tuple[str, ...]:
    """Return the lines of the first text file in the zip archive that ends the file, where there is one."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return ()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".txt")), None)
        if name is None:
            return ()
        with archive.open(name) as file:
            return tuple(file.read(TEXT_BYTES).decode(errors="replace").splitlines())


def _preprocessing(root: Table) -> Preprocessing | None:
    for graph in _tables(root, 3):
        for tensor in _tables(graph, 2):
            for unit in _tables(tensor, 4):
                kind = unit.Offset(4)
                if kind and unit.Get(Uint8Flags, kind + unit.Pos) == NORMALIZATION and (slot := unit.Offset(6)):
                    options = Table(unit.Bytes, unit.Indirect(slot + unit.Pos))
                    mean, std = (tuple(x / PIXEL for x in _floats(options, field)) for field in (0, 1))
                    return Preprocessing(mean=mean, std=std)
    return None


def _text(table: Table, field: int) -> str:
    slot = table.Offset(4 + 2 * field)
    return bytes(table.String(slot + table.Pos)).decode(errors="replace") if slot else ""


def _tables(table: Table, field: int) -> list[Table]:
    slot = table.Offset(4 + 2 * field)
    if not slot:
        return []
    start = table.Vector(slot)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(min(ITEMS, table.VectorLen(slot)))]


def _floats(table: Table, field: int) -> list[float]:
    slot = table.Offset(4 + 2 * field)
    if not slot:
        return []
    start = table.Vector(slot)
    return [table.Get(Float32Flags, start + 4 * i) for i in range(min(ITEMS, table.VectorLen(slot)))]
