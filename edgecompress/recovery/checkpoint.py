"""Training state in one safetensors file: weights, optimizer state and the epochs so far. No pickle."""

import hashlib
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.network.weights import State, fingerprint, save_state
from edgecompress.records import Epoch, Record

MODEL, OPTIMIZER = "model/", "optimizer/"


def key_of(model: nn.Module, options: Record, data: str) -> str:
    """Return a hash of everything that training depends on; a checkpoint of another key is not continued."""
    return hashlib.sha256(f"{fingerprint(model)}{msgspec.json.encode(options)!r}{data}".encode()).hexdigest()


def save(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: list[Epoch]) -> None:
    """Write the state after an epoch, atomically."""
    state: State = {MODEL + k: v for k, v in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                state[f"{OPTIMIZER}{index}/{name}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    save_state(state, path, {"key": key, "epochs": msgspec.json.encode(epochs).decode()})


def resume(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Epoch, ...]:
    """Load the state of `path` into the model and optimizer and return its epochs; () when there is none of this key.

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
