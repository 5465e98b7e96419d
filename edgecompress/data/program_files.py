"""Read a file of torch.export (`.pt2`) without running code that it may hold.

`torch.export.load` unpickles weights and constants, evaluates sizes as Python, takes any function of `torch` for an operation, and loads
compiled libraries. So the archive is written anew in memory first, with the members of a plain program and no other. None of them is
pickled, and in the description of the program each operation is one of PyTorch's own, each size is arithmetic, and each other text is a
plain name, which cannot end a line of the Python that PyTorch writes from the graph.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from edgecompress.errors import ConfigError, UnsupportedError, first_line
from edgecompress.network.exported import silence_export

MODEL: Final = "models/model.json"
PAYLOADS: Final = {"data/weights/model_weights_config.json": "weight", "data/constants/model_constants_config.json": "tensor"}
SAMPLES: Final = "data/sample_inputs/model.pt"  # pickled, and not needed: the graph tells the shapes
MEMBERS: Final = re.compile(
    r"archive_(format|version)|\.format_version|\.data/version|version|byteorder|data/(weights/weight|constants/tensor)_\d+"
)
COMPILED: Final = "data/aotinductor/"

PLAIN: Final = re.compile(r"[\w.:+,> -]*")
SIZE_FUNCTIONS: Final = (
    "Integer|Rational|Add|Mul|Pow|Max|Min|Mod|Equality|Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|And|Or|Not|FloorDiv"
    "|CeilDiv|CleanDiv|PythonMod|ModularIndexing|PowByNatural|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|CeilToInt|FloorToInt"
)
# Arithmetic on the symbols of sizes, such as s31, as sympy writes it.
SIZE: Final = re.compile(
    rf"(?:\s|[suz]\d+\b|\d+(?:\.\d+)?\b|[-+*/(),<>=~&|]|Symbol\('[suz]\d+'(?:, [a-z]+=(?:True|False))*\)|(?:{SIZE_FUNCTIONS})\b)*"
)
OPERATION: Final = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
ARITHMETIC: Final = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)|torch\.sym_\w+"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
FILE_OPERATIONS: Final = {"from_file", "_print"}  # open or write something
STRUCTURES: Final = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
OBJECTS: Final = {"as_operator", "as_custom_obj", "custom_obj", "token"}
INSTEAD: Final = "give the function that makes the network, FILE.py:FUNCTION@SHAPE"
SAVE_AGAIN: Final = "save it again with torch.export.save of torch 2.9 or later"


def load_program(path: Path, subject: str) -> ExportedProgram:
    """Return the program of a file that nobody needs to trust.

    Args:
        subject: The file's name in messages.

    Raises:
        ConfigError: The file is no such archive, was written by another version of torch, or holds something that would run as code.
        UnsupportedError: The program has operations of other packages, branches, or nested inputs or outputs of classes of its own.
    """
    try:
        members = _read_members(path, subject)
        program = _check_program(json.loads(members[MODEL]), subject)
        payloads = {name: _check_payloads(json.loads(members[name]), kind, subject) for name, kind in PAYLOADS.items()}
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{subject}: not a readable exported program ({type(error).__name__}: {first_line(error)}); {SAVE_AGAIN}"
        ) from error
    described = {name: json.dumps(value).encode() for name, value in {MODEL: program, **payloads}.items()}
    return _load_archive({**members, **described, SAMPLES: b""}, subject)


def _read_members(path: Path, subject: str) -> dict[str, bytes]:
    """Return the members of an archive that a plain program needs, without the name of the folder that holds them all."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if any(name.startswith(COMPILED) for name in names):
            raise UnsupportedError(f"{subject}: holds libraries compiled for one machine, which would run when loaded; {INSTEAD}")
        wanted = {short: name for short, name in names.items() if MEMBERS.fullmatch(short) or short in {MODEL, *PAYLOADS}}
        if any(archive.getinfo(name).compress_type != zipfile.ZIP_STORED for name in wanted.values()):
            raise ConfigError(f"{subject}: is compressed, torch.export.save compresses nothing; {SAVE_AGAIN}")
        return {short: archive.read(name) for short, name in wanted.items()}


def _load_archive(members: dict[str, bytes], subject: str) -> ExportedProgram:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    buffer.seek(0)
    try:
        with silence_export():
            return torch.export.load(buffer)
    except Exception as error:  # schema errors of many classes
        remedy = f"export it with torch {torch.__version__}, which reads it here"
        raise ConfigError(f"{subject}: torch.export cannot read it ({first_line(error)}); {remedy}") from error


def _check_payloads(found: dict[str, Any], kind: str, subject: str) -> dict[str, Any]:
    """Return the list of tensors of an archive.

    Raises:
        ConfigError: One of them is pickled, or lies elsewhere.
    """
    for name, about in found["config"].items():
        if about["use_pickle"] or not re.fullmatch(rf"{kind}_\d+", about["path_name"]):
            raise ConfigError(f"{subject}: {name} is a pickled object, which would run code when loaded; {INSTEAD}")
    _check_texts(found, "", subject)
    _place_on_cpu(found)
    return found


def _check_program(found: dict[str, Any], subject: str) -> dict[str, Any]:
    """Return the description of a program without its remarks and guards, which nothing here needs.

    Raises:
        ConfigError: Some text of it would run as code.
        UnsupportedError: See `load_program`.
    """
    module = found["graph_module"]
    found["guards_code"] = []
    module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
    module["module_call_graph"] = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}
    _check_texts(found, "", subject)
    _place_on_cpu(found)
    return found


def _place_on_cpu(value: object) -> None:
    """Write the processor in the place of every device, in place: programs that were exported on a GPU are read too."""
    if isinstance(value, dict) and value.keys() == {"type", "index"}:
        value.update(type="cpu", index=None)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _place_on_cpu(inner)


def _check_texts(value: object, key: str, subject: str) -> None:
    """Check every text below a value, each by the rule of the key under which it stands."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_name(name, subject)
            _check_texts(inner, name, subject)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, key, subject)
    elif isinstance(value, str):
        RULES.get(key, _check_name)(value, subject)


def _check_name(text: str, subject: str) -> None:
    if text == "as_graph":
        raise UnsupportedError(f"{subject}: has a branch, a loop or a block with settings of its own; {INSTEAD}")
    if text in OBJECTS or not PLAIN.fullmatch(text):
        raise _refuse_code(text, subject)


def _check_size(text: str, subject: str) -> None:
    if not SIZE.fullmatch(text):
        raise _refuse_code(text, subject)


def _check_operation(text: str, subject: str) -> None:
    if ARITHMETIC.fullmatch(text):
        return
    found = OPERATION.fullmatch(text)
    overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None) if found else None
    if found is None or found[1] in FILE_OPERATIONS or not isinstance(overload, torch._ops.OpOverload):
        name = text if PLAIN.fullmatch(text) else repr(text)
        raise UnsupportedError(f"{subject}: calls {name:.80}, only operations of torch.ops.aten are read; {INSTEAD}")


def _check_structure(text: str, subject: str) -> None:
    """Check how inputs or outputs are nested, which is JSON within JSON."""
    _, tree = json.loads(text)
    pending = [tree]
    while pending:
        node = pending.pop()
        if node["type"] not in STRUCTURES:
            raise UnsupportedError(f"{subject}: nests inputs or outputs in {node['type']!r:.80}; use tuples, lists and dicts of tensors")
        keys = json.loads(node["context"] or "null")
        if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)):
            raise _refuse_code(node["context"], subject)  # an object names a class to import
        pending += node["children_spec"]


RULES: Final[dict[str, Callable[[str, str], None]]] = {
    "expr_str": _check_size,
    "target": _check_operation,
    "in_spec": _check_structure,
    "out_spec": _check_structure,
}


def _refuse_code(text: str, subject: str) -> ConfigError:
    return ConfigError(f"{subject}: holds {text!r:.80}, which could run as code when loaded; {INSTEAD}")
