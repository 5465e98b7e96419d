"""Describe the contents of a model file from the file alone."""

import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import ProgramDied, run_program
from edgecompress.artifacts.sandbox import LimitReached
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError
from edgecompress.records import Inspection, InspectionRequest
from edgecompress.targets import FORMATS

MAX_FILE_BYTES: Final = 1 << 31  # no flatbuffer and no protobuf can be larger
TIMEOUT_S: Final = 180.0
MEMORY_GB: Final = 12.0  # parsed in Python, a flatbuffer of 2 GB takes several times its size
MAX_TEXT_LENGTH: Final = 200  # keeps a table readable whatever names a file holds


def inspect(path: Path, *, python: str = sys.executable) -> Inspection:
    """Return the contents of a model file: ops, shapes, quantization, ops that XNNPACK takes, sizes, memory and metadata.

    No manifest is needed. The file may come from anyone: a process of its own reads it, and the result has no control characters.

    Args:
        path: The file, whose ending tells its format.
        python: Interpreter that has the format's toolchain.

    Raises:
        ConfigError: The file is missing, empty or damaged, or has an unknown ending.
        ToolchainError: The format's toolchain is not installed; the message says how to install it.
    """
    path = Path(path)
    form = _detect_format(path)
    request = InspectionRequest(path=str(path.resolve()), format=form)
    try:
        found = run_program(toolchains.inspector(), request, Inspection, timeout_s=TIMEOUT_S, memory_gb=MEMORY_GB, python=python)
    except (ProgramDied, LimitReached) as error:
        raise ConfigError(f"{path}: reading it ended badly ({error}); it is damaged or hostile, copy or export it again") from error
    return msgspec.convert(_clean_text(msgspec.to_builtins(found)), Inspection)


def _detect_format(path: Path) -> str:
    """Return the format of a readable file by its ending.

    Raises:
        ConfigError: The ending is unknown, or the file is missing, empty or too large.
    """
    form = next((name for name, known in FORMATS.items() if known.suffix == path.suffix.lower()), None)
    if form is None:
        endings = ", ".join(known.suffix for known in FORMATS.values())
        raise ConfigError(f"{path}: unknown ending {path.suffix!r}; give a model file, one of {endings}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}; give the path of a model file") from error
    if not path.is_file():
        raise ConfigError(f"{path}: is no file; give the path of a model file")
    if size == 0:
        raise ConfigError(f"{path}: is empty; export it again")
    if size > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: has {size} bytes, more than the {MAX_FILE_BYTES} that any format allows; give the model file itself")
    return form


def _clean_text(value: Any) -> Any:
    """Return a copy of `value` in which every text is one line of bounded length without control characters."""
    if isinstance(value, str):
        return sanitize(" ".join(value.split()), limit=MAX_TEXT_LENGTH)
    if isinstance(value, dict):
        return {_clean_text(key): _clean_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_text(item) for item in value]
    return value
