"""Describe the contents of a model file. A program that keeps the contract in README.md.

The file may come from anyone: the program parses it, and loads it where that tells more, but never runs it.
"""

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgecompress.artifacts.serving import answer_requests
from edgecompress.errors import ConfigError
from edgecompress.records import Inspection, InspectionRequest


class Reader(NamedTuple):
    """The reader of a format.

    Attributes:
        module: A module with `inspect(content) -> Inspection`.
        extra: The extra of edgecompress that installs its toolchain.
        place: Offset of `mark` in a file.
        mark: Bytes that every file of the format has there.
    """

    module: str
    extra: str = ""
    place: int = 0
    mark: bytes = b""


READERS: Final = {
    "tflite": Reader("converters.tflite.inspection", "tflite", 4, b"TFL3"),
    "torchscript": Reader("converters.torchscript.inspection", "", 0, b"PK"),
    "onnx": Reader("converters.onnx.inspection", "onnx"),
    "executorch": Reader("converters.executorch.inspection", "executorch", 4, b"ET"),
}
MAX_CONSTANTS: Final = 10  # the largest constants make up most of a file, and a table stays readable
MAX_ENTRIES: Final = 1000  # ops, inputs, outputs and labels beyond 1000 each would exceed the size of a reply


def inspect(request: InspectionRequest) -> Inspection:
    """Return the contents of the file, bounded in size.

    Raises:
        ConfigError: The file is damaged or of another format.
    """
    if request.format not in READERS:
        raise ConfigError(f"unknown format {request.format!r}; choose from {', '.join(READERS)}")
    path, known = Path(request.path), READERS[request.format]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
    if content[known.place : known.place + len(known.mark)] != known.mark:
        raise ConfigError(f"{path.name}: not a {request.format} file; it is damaged or of another format, copy or export it again")
    reader = import_module(known.module)
    try:
        found: Inspection = reader.inspect(content)
    except Exception as error:  # parsers of damaged files raise whatever comes, from struct.error to RecursionError
        raise ConfigError(
            f"{path.name}: not a readable {request.format} file ({type(error).__name__}: {_first_line(error)}); "
            "it is damaged or of another format, copy or export it again"
        ) from error
    return msgspec.structs.replace(
        found,
        path=path.name,
        format=request.format,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs=found.inputs[:MAX_ENTRIES],
        outputs=found.outputs[:MAX_ENTRIES],
        ops=dict(list(found.ops.items())[:MAX_ENTRIES]),
        constants=tuple(sorted(found.constants, key=lambda constant: -constant.size_bytes)[:MAX_CONSTANTS]),
        labels=found.labels[:MAX_ENTRIES],
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


if __name__ == "__main__":
    sys.exit(answer_requests("inspect_file.py", inspect, InspectionRequest, extra=lambda request: READERS[request.format].extra))
