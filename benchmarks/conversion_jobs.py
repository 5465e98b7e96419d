"""Convert to TFLite in a process that keeps running, because the toolchain takes longer to load than most networks take to convert.

The output of the toolchain is discarded; errors come back in the replies.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

from lines import serve  # noqa: E402

from edgecompress import toolchains  # noqa: E402
from edgecompress.records import ConversionRequest, from_json  # noqa: E402

sys.path.insert(0, str(toolchains.program_root()))
import converters.tflite.litert_torch_route  # noqa: E402, F401 - loads the toolchain before the first request
from converters import to_tflite  # noqa: E402


def convert(request: str) -> dict[str, Any]:
    """Write the file of a conversion request, given as JSON."""
    asked = from_json(request.encode(), ConversionRequest, source="request")
    content, _ = to_tflite.convert(asked)
    Path(asked.output).write_bytes(content)
    return {}


if __name__ == "__main__":
    serve(convert)
