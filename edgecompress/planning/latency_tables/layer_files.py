"""Write TFLite files of single layers with a converter program."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import run_program
from edgecompress.options import DEFAULTS
from edgecompress.progress import Track, track_silently
from edgecompress.records import LayerFile, LayerForm, LayersReply, LayersRequest

LOG = logging.getLogger(__name__)
MAX_FILES_PER_START: Final = 200  # so many take well less than TIMEOUT_S
TIMEOUT_S: Final = 900.0


def write_layers(files: Sequence[tuple[LayerForm, str, Path]], *, track: Track = track_silently) -> None:
    """Write a TFLite file for each (form, scheme, path); files that cannot be written are logged and left out.

    Raises:
        ToolchainError: The program failed.
    """
    starts = range(0, len(files), MAX_FILES_PER_START)
    for start in track(starts, "writing layers", len(starts)):
        part = files[start : start + MAX_FILES_PER_START]
        requested = tuple(LayerFile(layer=form, scheme=scheme, output=str(path)) for form, scheme, path in part)
        memory_gb = DEFAULTS.convert_memory_gb
        reply = run_program(
            toolchains.layer_writer(), LayersRequest(files=requested), LayersReply, timeout_s=TIMEOUT_S, memory_gb=memory_gb
        )
        for output, reason in reply.refused.items():
            LOG.info("%s: %s", output, reason)
