"""Read and write state dicts, and check them. Reading a file never runs code from the file."""

import errno
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgecompress.errors import ConfigError, first_line
from edgecompress.files import replace_atomically
from edgecompress.network.factors import Factors

State = dict[str, Tensor]


def read_state(path: Path) -> State:
    """Read a state dict from safetensors, or from a `torch.save` file that holds nothing but tensors.

    Raises:
        ConfigError: The file is missing, damaged, or a pickle that would have to run code.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; give a .safetensors or .pt file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: damaged safetensors file ({error}); copy or save it again") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "GLOBAL" not in str(error):
            raise ConfigError(f"{path}: not a checkpoint, or a damaged one; give a .safetensors or .pt file") from error
        raise ConfigError(
            f"{path}: holds Python objects that would run code when loaded; save torch.save(model.state_dict(), …) or a .safetensors file"
        ) from error
    except Exception as error:  # a damaged pickle ends in any kind of error, KeyError and struct.error among them
        raise ConfigError(f"{path}: not a checkpoint, or a damaged one ({first_line(error)}); give a .safetensors or .pt file") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"{path}: not a state dict; save torch.save(model.state_dict(), …)")
    return state


def load_weights(model: nn.Module, state: State, *, source: str) -> None:
    """Load a state dict into `model`, whose keys and shapes it must match exactly.

    Raises:
        ConfigError: Keys or shapes differ; the message names the first ones.
    """
    own = model.state_dict()
    wrong = [
        f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}" for k in own if k in state and state[k].shape != own[k].shape
    ]
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if unknown and any(f"{layer}.weight" in missing for layer in map(_dense_layer_of, unknown)):
        raise ConfigError(f"{source}: holds the weights of an already decomposed model; give those of the dense model")
    if wrong or missing or unknown:
        parts = wrong[:1] + [
            f"{len(keys)} keys {what} (first: {keys[0]})" for what, keys in (("missing", missing), ("unknown", unknown)) if keys
        ]
        raise ConfigError(f"{source}: does not fit the model: {', '.join(parts)}; give the checkpoint of this very network")
    model.load_state_dict(state)


def save_state(state: State, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically; as contiguous copies, because safetensors refuses views and shared memory."""
    with replace_atomically(path) as temporary:
        try:
            save_file({k: v.detach().contiguous().clone() for k, v in state.items()}, temporary, metadata)
        except SafetensorError as error:  # an I/O error comes as text
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over the names, types and values of a model's state."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_dense(model: nn.Module, *, subject: str) -> None:
    """Check that a run can start from `model`.

    Raises:
        ConfigError: The model is no module, is already decomposed, or has a weight that is not finite.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{subject}: model() returned {type(model).__name__}; return a torch.nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, Factors):
            raise ConfigError(f"{subject}: {name} is already decomposed; give the dense model")
    for name in nonfinite_tensors(model):
        raise ConfigError(f"{subject}: weight {name} holds NaN or infinity; retrain or repair the checkpoint")


def nonfinite_tensors(model: nn.Module) -> Iterator[str]:
    """Yield the names of weights and statistics that hold NaN or infinity, and of other buffers that hold NaN: masks may hold −∞."""
    for prefix, module in model.named_modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            finite = isinstance(value, nn.Parameter) or isinstance(module, _NormBase)
            if value.is_floating_point() and bool((~value.isfinite() if finite else value.isnan()).any()):
                yield f"{prefix}.{name}".removeprefix(".")


def _dense_layer_of(key: str) -> str:
    """Return the dense layer that a factor's key belongs to: `layer1.conv1` for `layer1.conv1.core.weight`."""
    return key.rpartition(".")[0].rpartition(".")[0]
