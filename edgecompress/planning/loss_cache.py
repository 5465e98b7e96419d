"""Measured losses on disk, so that another budget, allocator or trial of a search does not measure a network again.

Each network, set of inputs and way of fitting has one JSON file in the cache beside the fits. Its name is a hash of everything that a loss
depends on except the layer's form: weights, inputs, outputs of the dense network, and the code. The cache never makes a plan fail: losses
that cannot be read completely are measured again, and losses that cannot be written are not cached.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from torch import nn

from edgecompress.errors import EdgeCompressError
from edgecompress.factorizations.cache import CODE_PACKAGES, cache_folder, hash_code, hash_tensors, trim_folder
from edgecompress.files import write_atomically
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import Specs
from edgecompress.network.weights import fingerprint
from edgecompress.planning.candidates import Candidate

LOG = logging.getLogger(__name__)
MAX_BYTES: Final = 100_000_000  # losses of thousands of networks; older files are removed beyond it

CachedLosses = dict[str, float]  # key of a layer's form, or of its int8 rounding → loss in nats per sample


def cache_path(model: nn.Module, inputs: Batch, outputs: Iterable[Batch], *, specs: Specs | None = None, data_aware: bool) -> Path | None:
    """Return the file for the losses of a network on these inputs; None if caching is turned off.

    Args:
        outputs: The network's outputs for the inputs, part by part: networks with equal weights may compute different functions.
        specs: The kinds of the outputs, by which losses are measured.
    """
    folder = cache_folder(None, "losses")
    if folder is None:
        return None
    seen = [hash_tensors({str(i): x for i, x in enumerate(batch)}) for batch in (inputs, *outputs)]
    code = hash_code(*CODE_PACKAGES, "edgecompress.network", "edgecompress.quantization", "edgecompress.planning")
    key = hashlib.sha256(msgspec.json.encode((code, fingerprint(model), seen, specs, data_aware))).hexdigest()
    return folder / key[:2] / f"{key}.json"


def form_key(layer: str, form: Candidate) -> str:
    """Return the key of a layer's form within a file."""
    return msgspec.json.encode((layer, form.method, form.rank, dict(form.options)), order="sorted").decode()


def int8_key(layer: str) -> str:
    """Return the key of a layer's int8 rounding within a file."""
    return msgspec.json.encode((layer, "int8")).decode()


def load_losses(path: Path | None) -> CachedLosses:
    """Return the losses of a file; none if the file does not exist or is damaged."""
    if path is None:
        return {}
    try:
        checksum, losses = msgspec.json.decode(path.read_bytes(), type=tuple[str, CachedLosses])
    except (OSError, msgspec.DecodeError):
        return {}
    return losses if checksum == _checksum(path, losses) else {}


def store_losses(path: Path | None, losses: CachedLosses) -> None:
    """Write the losses to a file; a file that cannot be written is logged and left out."""
    if path is None:
        return
    try:
        write_atomically(path, msgspec.json.encode((_checksum(path, losses), losses)))
    except (EdgeCompressError, OSError) as error:
        LOG.info("not cached: %s", error)
    trim_folder(path.parents[1], MAX_BYTES)


def _checksum(path: Path, losses: CachedLosses) -> str:
    """Return a hash over the file's name and losses, so that neither a damaged nor a renamed file is accepted."""
    return hashlib.sha256(msgspec.json.encode((path.name, losses), order="sorted")).hexdigest()
