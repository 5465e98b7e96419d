"""Files of single layers, written by a converter program."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import ask
from edgecompress.options import DEFAULTS
from edgecompress.progress import Track, silent
from edgecompress.records import LayerFile, LayerForm, LayersReply, LayersRequest

LOG = logging.getLogger(__name__)
AT_ONCE: Final = 200  # files by one start of the program
TIMEOUT_S: Final = 900.0
MEMORY_GB: Final = DEFAULTS.convert_memory_gb


def write_layers(files: Sequence[tuple[LayerForm, str, Path]], *, track: Track = silent) -> None:
    """Write a TFLite file for each (form, scheme, path); those that cannot be written are logged and left out.

    Raises:
        ToolchainError: The program failed.
    """
    starts = range(0, len(files), AT_ONCE)
    for start in track(starts, "writing layers", len(starts)):
        asked = tuple(LayerFile(layer=form, scheme=scheme, output=str(path)) for form, scheme, path in files[start : start + AT_ONCE])
        reply = ask(
            toolchains.layer_writer(), LayersRequest(files=asked), LayersReply, timeout_s=TIMEOUT_S, memory_gb=DEFAULTS.convert_memory_gb
        )
        for output, reason in reply.refused.items():
            LOG.info("%s: %s", output, reason)
