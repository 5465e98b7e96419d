"""Checkpoints of training: weights, optimizer state and epoch records in one safetensors file, without pickle."""

import hashlib
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.network.weights import State, fingerprint, save_state
from edgecompress.records import Epoch

MODEL, OPTIMIZER = "model/", "optimizer/"


def make_key(model: nn.Module, options: object, data: str) -> str:
    """Return a hash of all that training depends on; a checkpoint with another key is not continued."""
    return hashlib.sha256(f"{fingerprint(model)}{msgspec.json.encode(options)!r}{data}".encode()).hexdigest()


def save_checkpoint(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: list[Epoch]) -> None:
    """Write the state of training after an epoch, atomically."""
    state: State = {MODEL + k: v for k, v in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                state[f"{OPTIMIZER}{index}/{name}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    save_state(state, path, {"key": key, "epochs": msgspec.json.encode(epochs).decode()})


def resume_training(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Epoch, ...]:
    """Load a checkpoint into the model and optimizer; return its epochs, () when no file has this key.

    Raises:
        ConfigError: The file is damaged.
    """
    if not path.exists():
        return ()
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return ()
            state: State = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: damaged checkpoint ({error}); remove it and run the step again") from error
    epochs = msgspec.json.decode(metadata["epochs"], type=tuple[Epoch, ...])
    model.load_state_dict({k.removeprefix(MODEL): v for k, v in state.items() if k.startswith(MODEL)})
    restored = optimizer.state_dict()
    for k, v in state.items():
        if k.startswith(OPTIMIZER):
            index, name = k.removeprefix(OPTIMIZER).split("/")
            restored["state"].setdefault(int(index), {})[name] = v
    optimizer.load_state_dict(restored)
    return epochs
