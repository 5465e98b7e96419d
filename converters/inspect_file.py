"""Say what a model file holds: a program, see README.md beside it.

The file is anybody's: it is read, and loaded where that tells more, and never run.
"""

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edgecompress.artifacts.converter_process import answer_request
from edgecompress.errors import ConfigError
from edgecompress.records import Inspection, InspectionRequest


class Reader(NamedTuple):
    """How files of a format are read.

    Attributes:
        module: Has `inspect(content) -> Inspection`.
        extra: The extra of edgecompress that holds its toolchain.
        mark: What every such file holds at `place`.
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
LARGEST: Final = 10  # constants that are told
KINDS: Final = 1000  # of ops, inputs, labels: what a reply has room for


def inspect(request: InspectionRequest) -> Inspection:
    """Return what the file holds, bounded in size.

    Raises:
        ConfigError: It is damaged, or of another format.
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
        inputs=found.inputs[:KINDS],
        outputs=found.outputs[:KINDS],
        ops=dict(list(found.ops.items())[:KINDS]),
        constants=tuple(sorted(found.constants, key=lambda constant: -constant.size_bytes)[:LARGEST]),
        labels=found.labels[:KINDS],
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


if __name__ == "__main__":
    sys.exit(answer_request("inspect_file.py", inspect, InspectionRequest, extra=lambda request: READERS[request.format].extra))
