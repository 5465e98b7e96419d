"""Read and write the state dicts of a run, and check networks."""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgecompress.errors import ConfigError
from edgecompress.files import replace_atomically

State = dict[str, Tensor]
MAX_NAMED: Final = 3  # names of keys in a message; the first ones tell which network they belong to


def read_state(path: Path) -> State:
    """Read a state dict from a safetensors file.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of weights; copy it, or make it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: damaged safetensors file ({error}); copy or save it again") from error


def load_weights(model: nn.Module, state: State, *, source: str) -> None:
    """Load a state dict into `model`, whose keys and shapes it must match exactly.

    Raises:
        ConfigError: Keys or shapes differ; the message names the first ones.
    """
    own = model.state_dict()
    misfit = describe_misfit(
        [describe_difference(k, state[k], own[k]) for k in own if k in state and state[k].shape != own[k].shape],
        sorted(own.keys() - state.keys()),
        sorted(state.keys() - own.keys()),
    )
    if misfit:
        raise ConfigError(f"{source}: does not fit the model: {misfit}; give the checkpoint of this very network")
    model.load_state_dict(state)


def describe_difference(key: str, found: Tensor, own: Tensor) -> str:
    """Return how a tensor of a checkpoint differs from the network's: in its shape, or else in its type."""
    if found.shape != own.shape:
        return f"{key} is {tuple(found.shape)}, the model has {tuple(own.shape)}"
    return f"{key} is {str(found.dtype).removeprefix('torch.')}, the model has {str(own.dtype).removeprefix('torch.')}"


def describe_misfit(wrong: Sequence[str], missing: Sequence[str], unknown: Sequence[str]) -> str:
    """Return in one phrase what keeps tensors from a network: those that differ, those missing, those unknown; "" for nothing."""
    more = f" (and {len(wrong) - MAX_NAMED} more differ)" if len(wrong) > MAX_NAMED else ""
    parts = [", ".join(wrong[:MAX_NAMED]) + more] if wrong else []
    parts += [
        f"{len(keys)} keys {what} (first: {', '.join(keys[:MAX_NAMED])})"
        for what, keys in (("missing", missing), ("unknown", unknown))
        if keys
    ]
    return ", ".join(parts)


def save_state(state: State, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically; as contiguous copies, because safetensors refuses views and shared memory."""
    with replace_atomically(path) as temporary:
        try:
            save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()}, temporary, metadata)
        except SafetensorError as error:  # an I/O error comes as text
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over the names, types and values of a model's state."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        dense = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # contiguous() leaves a stride of 0 on an axis of size 1
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def nonfinite_tensors(model: nn.Module) -> Iterator[str]:
    """Yield the names of weights and statistics that hold NaN or infinity, and of other buffers that hold NaN: masks may hold −∞."""
    for prefix, module in model.named_modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            finite = isinstance(value, nn.Parameter) or isinstance(module, _NormBase)
            if value.is_floating_point() and bool((~value.isfinite() if finite else value.isnan()).any()):
                yield f"{prefix}.{name}".removeprefix(".")
