"""Measured losses on disk, so that another budget, another allocator or a trial of a search does not measure a network again.

One JSON file for each network, inputs and way of fitting, in the cache beside the fits, named by a hash of all that a loss depends on but
the layer's form: weights, inputs, what the dense network makes of them, and the code. Nothing here fails a plan: what cannot be read whole
is measured, what cannot be written is left out.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from torch import nn

from edgecompress.errors import EdgeCompressError
from edgecompress.factorizations.cache import CODE, code_of, digest, folder_of, trim
from edgecompress.files import write_atomic
from edgecompress.network.batches import Batch
from edgecompress.network.weights import fingerprint
from edgecompress.planning.candidates import Candidate

LOG = logging.getLogger(__name__)
LIMIT_BYTES: Final = 100_000_000

Known = dict[str, float]  # name of a layer's form, or of its rounding → loss in nats a sample


def file_of(model: nn.Module, inputs: Batch, outputs: Iterable[Batch], *, data_aware: bool) -> Path | None:
    """Return where the losses of a network on these inputs are kept; None for nowhere.

    Args:
        outputs: What it makes of the inputs, part by part: networks of equal weights may compute different things.
    """
    folder = folder_of(None, "losses")
    if folder is None:
        return None
    seen = [digest({str(i): x for i, x in enumerate(batch)}) for batch in (inputs, *outputs)]
    code = code_of(*CODE, "edgecompress.network", "edgecompress.quantization", "edgecompress.planning")
    key = hashlib.sha256(msgspec.json.encode((code, fingerprint(model), seen, data_aware))).hexdigest()
    return folder / key[:2] / f"{key}.json"


def name_of(layer: str, form: Candidate) -> str:
    return msgspec.json.encode((layer, form.method, form.rank, dict(form.options)), order="sorted").decode()


def rounded(layer: str) -> str:
    return msgspec.json.encode((layer, "int8")).decode()


def load(path: Path | None) -> Known:
    """Return what is known; nothing of a file that is not there or is damaged."""
    if path is None:
        return {}
    try:
        seal, losses = msgspec.json.decode(path.read_bytes(), type=tuple[str, Known])
    except (OSError, msgspec.DecodeError):
        return {}
    return losses if seal == _seal(path, losses) else {}


def store(path: Path | None, losses: Known) -> None:
    if path is None:
        return
    try:
        write_atomic(path, msgspec.json.encode((_seal(path, losses), losses)))
    except (EdgeCompressError, OSError) as error:
        LOG.info("not cached: %s", error)
    trim(path.parents[1], LIMIT_BYTES)


def _seal(path: Path, losses: Known) -> str:
    """Bind what a file says to its name, so that neither a damaged nor a renamed one is believed."""
    return hashlib.sha256(msgspec.json.encode((path.name, losses), order="sorted")).hexdigest()
