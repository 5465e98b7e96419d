"""Read a file of the lite interpreter (`.ptl`), a zip archive of pickles, without running anything that the pickles name."""

import io
import pickle
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from edgecompress.records import Preprocessing, Record, TensorSpec

EXTRA_FILE: Final = "edgecompress.json"
MAX_PICKLE_BYTES: Final = 1 << 26
ELEMENT_BYTES: Final = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "QInt32": 4, "Half": 2, "BFloat16": 2, "Short": 2}  # others: 1
REBUILD: Final = {"_rebuild_tensor_v2", "_rebuild_qtensor"}


class FileDescription(Record, frozen=True, kw_only=True):
    """The extra file `edgecompress.json`, which holds what TorchScript itself does not keep."""

    name: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackedTensor:
    """A constant tensor and the op that reads it. `scales` is the number of its scales, 0 where it is not quantized."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    scales: int = 0


@dataclass(frozen=True)
class Bytecode:
    """The program of a file: `arguments` are the names of its inputs, `ops` counts the calls of each operator."""

    version: int
    ops: dict[str, int]
    arguments: tuple[str, ...]
    constants: tuple[PackedTensor, ...]


def read_bytecode(content: bytes) -> Bytecode:
    """Return the program of a file; a damaged file may raise any exception."""
    version, *functions = _unpickle(read_entry(content, "bytecode.pkl"))
    ops: Counter[str] = Counter()
    constants: list[PackedTensor] = []
    for function in functions:
        parts = dict(function[1])
        names = [f"{name}.{overload}" if overload else name for name, overload, *_ in parts["operators"]]
        loaded: list[Any] = []
        for code, index, *_ in parts["instructions"]:
            if code == "LOADC":
                loaded.append(parts["constants"][index])
            elif code in ("OP", "OPN"):
                ops[names[index]] += 1
                constants += _find_tensors(loaded, names[index])
                loaded = []
    schema = dict(functions[0][2])
    arguments = tuple(str(dict(argument)["name"]) for argument in schema["arguments"])
    return Bytecode(version=int(version), ops=dict(sorted(ops.items())), arguments=arguments[1:], constants=tuple(constants))


def read_entry(content: bytes, name: str) -> bytes:
    """Return an entry of the archive, by its path inside the archive's one folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        info = archive.getinfo(f"{folder}/{name}")
        if info.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"{name} has {info.file_size} bytes")
        return archive.read(info)


class _UnresolvedObject:
    """Stands in for any class or function that a pickle names, and keeps its arguments."""

    name = ""
    given: tuple[Any, ...] = ()
    state: Any = ()

    def __new__(cls, *given: Any) -> "_UnresolvedObject":
        made = super().__new__(cls)
        made.given = given
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        return type("_UnresolvedObject", (_UnresolvedObject,), {"name": name})

    def persistent_load(self, pid: Any, /) -> Any:
        return pid


def _unpickle(data: bytes) -> Any:
    return _SafeUnpickler(io.BytesIO(data)).load()


def _find_tensors(value: Any, op: str) -> list[PackedTensor]:
    """Return the tensors inside constants, packed weights among them."""
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _find_tensors(item, op)]
    if not isinstance(value, _UnresolvedObject):
        return []
    if value.name not in REBUILD:
        return _find_tensors([value.given, value.state], op)
    storage, _, shape, _, *rest = value.given
    kind = storage[1].name.removesuffix("Storage")
    # (qscheme, scale, zero point), or (qscheme, scales, zero points, axis), where the scales are a tensor themselves
    scale = rest[0][1] if value.name == "_rebuild_qtensor" else None
    scales = 0 if scale is None else scale.given[2][0] if isinstance(scale, _UnresolvedObject) else 1
    made = PackedTensor(
        op=op, shape=tuple(shape), dtype=kind.lower(), size_bytes=int(storage[4]) * ELEMENT_BYTES.get(kind, 1), scales=scales
    )
    return [made, *_find_tensors(scale, "")] if isinstance(scale, _UnresolvedObject) else [made]
