"""What stands in a lite interpreter's file (`.ptl`): a zip archive of pickles, read here without running anything that they name."""

import io
import pickle
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from edgecompress.records import Preprocessing, Record, TensorSpec

EXTRA_FILE: Final = "edgecompress.json"
PICKLE_BYTES: Final = 1 << 26
BYTES: Final = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "QInt32": 4, "Half": 2, "BFloat16": 2, "Short": 2}  # others: 1
REBUILD: Final = {"_rebuild_tensor_v2", "_rebuild_qtensor"}


class Described(Record, frozen=True, kw_only=True):
    """The extra file `edgecompress.json`: what TorchScript itself does not keep."""

    name: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A tensor of the file and the op that reads it. `scales` is empty where it is not quantized."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    scales: int = 0


@dataclass(frozen=True)
class Bytecode:
    """`arguments` are the inputs' names; `ops` how often each operator is called."""

    version: int
    ops: dict[str, int]
    arguments: tuple[str, ...]
    constants: tuple[Constant, ...]


def read_bytecode(content: bytes) -> Bytecode:
    """Return what the file's program does and holds; anything may be raised where it is damaged."""
    version, *functions = _unpickled(read_entry(content, "bytecode.pkl"))
    ops: Counter[str] = Counter()
    constants: list[Constant] = []
    for function in functions:
        parts = dict(function[1])
        names = [f"{name}.{overload}" if overload else name for name, overload, *_ in parts["operators"]]
        loaded: list[Any] = []
        for code, index, *_ in parts["instructions"]:
            if code == "LOADC":
                loaded.append(parts["constants"][index])
            elif code in ("OP", "OPN"):
                ops[names[index]] += 1
                constants += _tensors(loaded, names[index])
                loaded = []
    schema = dict(functions[0][2])
    arguments = tuple(str(dict(argument)["name"]) for argument in schema["arguments"])
    return Bytecode(version=int(version), ops=dict(sorted(ops.items())), arguments=arguments[1:], constants=tuple(constants))


def read_entry(content: bytes, name: str) -> bytes:
    """Return an entry of the archive, by its path inside the archive's one folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        info = archive.getinfo(f"{folder}/{name}")
        if info.file_size > PICKLE_BYTES:
            raise ValueError(f"{name} has {info.file_size} bytes")
        return archive.read(info)


class _Named:
    """Stands in for whatever class or function a pickle names, and keeps what that would have been given."""

    name = ""
    given: tuple[Any, ...] = ()
    state: Any = ()

    def __new__(cls, *given: Any) -> "_Named":
        made = super().__new__(cls)
        made.given = given
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        return type("_Named", (_Named,), {"name": name})

    def persistent_load(self, pid: Any, /) -> Any:
        return pid


def _unpickled(data: bytes) -> Any:
    return _Reader(io.BytesIO(data)).load()


def _tensors(value: Any, op: str) -> list[Constant]:
    """Return the tensors inside constants, packed weights among them."""
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item, op)]
    if not isinstance(value, _Named):
        return []
    if value.name not in REBUILD:
        return _tensors([value.given, value.state], op)
    storage, _, shape, _, *rest = value.given
    kind = storage[1].name.removesuffix("Storage")
    # (qscheme, scale, zero point), or (qscheme, scales, zero points, axis), where the scales are a tensor themselves
    scale = rest[0][1] if value.name == "_rebuild_qtensor" else None
    scales = 0 if scale is None else scale.given[2][0] if isinstance(scale, _Named) else 1
    made = Constant(op=op, shape=tuple(shape), dtype=kind.lower(), size_bytes=int(storage[4]) * BYTES.get(kind, 1), scales=scales)
    return [made, *_tensors(scale, "")] if isinstance(scale, _Named) else [made]
