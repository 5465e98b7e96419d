"""Finished fits on disk, so that a second plan for the same layers does not fit them again.

Each entry is one safetensors file, named by a hash of everything that the fit depends on: the layer's weights and geometry, method, rank,
options, moments, the code of the methods and the version of torch. The cache never makes a run fail: an entry that cannot be read
completely is a miss, and one that cannot be written is left out.

    EDGECOMPRESS_CACHE    the cache folder, this user's cache folder by default; empty turns caching off
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgecompress.errors import EdgeCompressError
from edgecompress.factorizations.blocks.layers import TRANSPOSED, DenseLayer
from edgecompress.factorizations.protocol import Moments
from edgecompress.files import replace_atomically
from edgecompress.network.factors import Factors

LOG = logging.getLogger(__name__)
MAX_BYTES: Final = 1_000_000_000  # size of the cache; beyond it the entries unused for longest are removed
# Added to the size of each entry, so that the number of small ones is limited too: listing a full folder is slow.
ENTRY_OVERHEAD_BYTES: Final = 16_384
CODE_PACKAGES: Final = tuple(f"edgecompress.factorizations{room}" for room in ("", ".methods", ".blocks", ".tensors"))  # decide a fit
TRIM_FRACTION: Final = 0.9  # trimming goes below the limit, so that the next entry does not trim again


class FitResult(NamedTuple):
    """Errors of a fitted layer, and a note on how the fit fell short of the request; "" if it did not."""

    relative_error: float
    spectral_error: float
    note: str


def cache_folder(given: str | Path | None, kind: str = "factorizations") -> Path | None:
    """Return the folder for results of a kind, None if caching is turned off.

    Args:
        given: The cache folder; None for this user's, "" to turn caching off.
    """
    chosen = os.environ.get("EDGECOMPRESS_CACHE") if given is None else given
    if chosen is None:
        return user_cache_path("edgecompress") / kind
    return Path(chosen) / kind if str(chosen) else None


def fit_key(layer: DenseLayer, method: str, rank: tuple[int, ...], options: Mapping[str, Any], moments: Moments | None) -> str:
    """Return the hash of everything that a fit depends on; `options` include the defaults."""
    state = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
    read = "" if moments is None else hash_tensors(moments._asdict())
    parts = (hash_code(*CODE_PACKAGES), type(layer).__name__, layer_arguments(layer), hash_tensors(state), method, rank, options, read)
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def layer_arguments(layer: DenseLayer) -> dict[str, Any]:
    """Return the arguments with which a layer's class makes another layer of the same geometry."""
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if isinstance(layer, TRANSPOSED) else []
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


def load_fit(folder: Path, key: str) -> FitResult | None:
    """Return the errors and the note of an entry; None for one that does not exist or is damaged."""
    path = _entry_path(folder, key)
    try:
        with safe_open(path, framework="pt") as file:
            kept = file.metadata() or {}
            fit = FitResult(float(kept["relative_error"]), float(kept["spectral_error"]), kept["note"])
            if kept["seal"] != _checksum(key, fit, kept["factors"]):
                return None
    except (OSError, RuntimeError, SafetensorError, KeyError, ValueError):  # RuntimeError: removed by another process while it was opened
        return None
    with suppress(OSError):
        os.utime(path)  # mark the entry as used
    return fit


def load_factors(folder: Path, key: str, compact: Factors) -> bool:
    """Load the factors of an entry that `load_fit` has found good; return whether it has them, undamaged."""
    try:
        with safe_open(_entry_path(folder, key), framework="pt") as file:
            inside = (file.metadata() or {}).get("factors")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (OSError, RuntimeError, SafetensorError):
        return False
    own = compact.state_dict()
    alike = own.keys() == state.keys() and all(own[k].shape == v.shape and own[k].dtype == v.dtype for k, v in state.items())
    if not alike or hash_tensors(state) != inside:
        return False
    compact.load_state_dict(state)
    return True


def store_fit(folder: Path, key: str, fit: FitResult, compact: Factors | None) -> None:
    """Write an entry, with the factors of `compact` or, if it is None, without factors."""
    state = {} if compact is None else {k: v.detach().cpu().contiguous().clone() for k, v in compact.state_dict().items()}
    inside = hash_tensors(state) if state else ""
    kept = {
        "relative_error": repr(fit.relative_error),
        "spectral_error": repr(fit.spectral_error),
        "note": fit.note,
        "factors": inside,
        "seal": _checksum(key, fit, inside),
    }
    try:
        with replace_atomically(_entry_path(folder, key)) as temporary:
            save_file(state, temporary, kept)
    except (EdgeCompressError, SafetensorError, OSError) as error:
        LOG.info("not cached: %s", error)


def trim_folder(folder: Path, limit: int = MAX_BYTES) -> None:
    """Remove the entries unused for longest if all entries together exceed `limit` bytes."""
    found = []
    for path in folder.glob("*/*"):
        with suppress(OSError):  # another process may have removed it
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size + ENTRY_OVERHEAD_BYTES, path))
    total = sum(size for _, size, _ in found)
    if total <= limit:
        return
    for _, size, path in sorted(found):
        with suppress(OSError):
            path.unlink()
        total -= size
        if total <= TRIM_FRACTION * limit:
            return


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of tensors."""
    made = hashlib.sha256()
    for name, value in sorted(state.items()):
        made.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        made.update(value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def _entry_path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def _checksum(key: str, fit: FitResult, inside: str) -> str:
    """Return a hash over an entry's name and content, so that neither a damaged nor a renamed file is accepted."""
    return hashlib.sha256(msgspec.json.encode((key, repr(fit.relative_error), repr(fit.spectral_error), fit.note, inside))).hexdigest()


@cache
def hash_code(*packages: str) -> str:
    """Return the hash of the code of packages and the version of torch; changed code does not find results of older code."""
    made = hashlib.sha256(torch.__version__.encode())
    for package in packages:
        for path in sorted(files(package).iterdir(), key=lambda path: path.name):
            if path.name.endswith(".py"):
                made.update(path.name.encode() + path.read_bytes())
    return made.hexdigest()
