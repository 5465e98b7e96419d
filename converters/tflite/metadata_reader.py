"""Read the metadata of a TFLite file, written by `metadata.py` or by standard tools: name, normalisation of images, labels."""

import io
import zipfile
from dataclasses import dataclass
from typing import Any, Final

import flatbuffers
from flatbuffers.number_types import Float32Flags, Uint8Flags
from flatbuffers.table import Table

from edgecompress.records import Preprocessing

ENTRY: Final = b"TFLITE_METADATA"
NORMALIZATION: Final = 1  # the member of the union ProcessUnitOptions
PIXEL: Final = 255.0  # metadata normalise pixels of 0 … 255, `Preprocessing` normalises values of 0 … 1
MAX_TEXT_BYTES: Final = 1 << 20
MAX_ITEMS: Final = 1000


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file. `size_bytes` is the size of its buffer in the model."""

    name: str = ""
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    size_bytes: int = 0


def read_metadata(content: bytes, model: Any) -> Metadata:
    """Return the metadata of a file; empty fields where the file has none.

    Args:
        model: The model, as flatbuffer_utils reads it.
    """
    entry = next((entry for entry in model.metadata or () if entry.name == ENTRY), None)
    if entry is None:
        return Metadata(labels=_read_labels(content))
    data = bytearray(bytes(model.buffers[entry.buffer].data))
    root = Table(data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))
    return Metadata(name=_read_text(root, 0), preprocessing=_read_preprocessing(root), labels=_read_labels(content), size_bytes=len(data))


def _read_labels(content: bytes) -> tuple[str, ...]:
    """Return the lines of the first text file in the zip archive at the end of the file; () without one."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return ()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".txt")), None)
        if name is None:
            return ()
        with archive.open(name) as file:
            return tuple(file.read(MAX_TEXT_BYTES).decode(errors="replace").splitlines())


def _read_preprocessing(root: Table) -> Preprocessing | None:
    for graph in _read_tables(root, 3):
        for tensor in _read_tables(graph, 2):
            for unit in _read_tables(tensor, 4):
                kind = unit.Offset(4)
                if kind and unit.Get(Uint8Flags, kind + unit.Pos) == NORMALIZATION and (slot := unit.Offset(6)):
                    options = Table(unit.Bytes, unit.Indirect(slot + unit.Pos))
                    mean, std = (tuple(x / PIXEL for x in _read_floats(options, field)) for field in (0, 1))
                    return Preprocessing(mean=mean, std=std)
    return None


def _read_text(table: Table, field: int) -> str:
    slot = table.Offset(4 + 2 * field)
    return bytes(table.String(slot + table.Pos)).decode(errors="replace") if slot else ""


def _read_tables(table: Table, field: int) -> list[Table]:
    slot = table.Offset(4 + 2 * field)
    if not slot:
        return []
    start = table.Vector(slot)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(min(MAX_ITEMS, table.VectorLen(slot)))]


def _read_floats(table: Table, field: int) -> list[float]:
    slot = table.Offset(4 + 2 * field)
    if not slot:
        return []
    start = table.Vector(slot)
    return [table.Get(Float32Flags, start + 4 * i) for i in range(min(MAX_ITEMS, table.VectorLen(slot)))]
