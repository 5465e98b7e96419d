"""Say what a model file holds, from the file alone."""

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

LARGEST_BYTES: Final = 1 << 31  # of a flatbuffer, and of a protobuf
TIMEOUT_S: Final = 180.0
MEMORY_GB: Final = 12.0  # Python holds a flatbuffer of 2 GB as several times its size
TEXT: Final = 200  # letters of a name


def inspect(path: Path, *, python: str = sys.executable) -> Inspection:
    """Return what a model file holds: ops, shapes, quantization, what XNNPACK takes, sizes, memory and metadata.

    No manifest is needed. The file may be anybody's: a process of its own reads it, and no text in the result can move a cursor.

    Args:
        path: The file; its ending says its format.
        python: The interpreter that has the format's toolchain.

    Raises:
        ConfigError: No such file, an unknown ending, an empty or damaged file.
        ToolchainError: The format's toolchain is not installed; says how to install it.
    """
    path = Path(path)
    form = _format_of(path)
    request = InspectionRequest(path=str(path.resolve()), format=form)
    try:
        found = run_program(toolchains.inspector(), request, Inspection, timeout_s=TIMEOUT_S, memory_gb=MEMORY_GB, python=python)
    except (ProgramDied, LimitReached) as error:
        raise ConfigError(f"{path}: reading it ended badly ({error}); it is damaged or hostile, copy or export it again") from error
    return msgspec.convert(_cleaned(msgspec.to_builtins(found)), Inspection)


def _format_of(path: Path) -> str:
    """Return the format that the file's ending says, once there is something to read.

    Raises:
        ConfigError: There is not.
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
    if size > LARGEST_BYTES:
        raise ConfigError(f"{path}: has {size} bytes, more than the {LARGEST_BYTES} that any format allows; give the model file itself")
    return form


def _cleaned(value: Any) -> Any:
    """Return `value` with all its text on one line, bounded, and without control characters."""
    if isinstance(value, str):
        return sanitize(" ".join(value.split()), limit=TEXT)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value
