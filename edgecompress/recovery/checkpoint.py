"""Checkpoints of training in one safetensors file, without pickle: the network, the optimizer, the best state and the epochs so far."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.network.weights import State, fingerprint, save_state
from edgecompress.records import Epoch

MODEL, OPTIMIZER, BEST = "model/", "optimizer/", "best/"


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        epochs: The first one is the network before training.
        best: Number of the epoch that is kept if training ends here.
        state: The network's parameters and buffers after that epoch.
        peak_rate: Learning rate at the peak of the schedule, chosen before the first epoch, and `why`, in words.
        notes: Remarks for the record.
    """

    epochs: list[Epoch]
    state: State
    best: int = 0
    peak_rate: float = 0.0
    why: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def best_epoch(self) -> Epoch:
        return next(epoch for epoch in self.epochs if epoch.epoch == self.best)


def make_key(model: nn.Module, options: object, *others: object) -> str:
    """Return a hash of all that training depends on; a checkpoint with another key is not continued."""
    return hashlib.sha256(f"{fingerprint(model)}{msgspec.json.encode(options)!r}{others!r}".encode()).hexdigest()


def copy_state(model: nn.Module) -> State:
    """Return copies of a network's parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def save_checkpoint(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state of training after an epoch, atomically."""
    state: State = {MODEL + name: value for name, value in model.state_dict().items()}
    state |= {BEST + name: value for name, value in progress.state.items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                state[f"{OPTIMIZER}{index}/{name}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    told = (progress.epochs, progress.best, progress.peak_rate, progress.why, progress.notes)
    save_state(state, path, {"key": key, "progress": msgspec.json.encode(told).decode()})


def resume_training(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Load a checkpoint into the model and optimizer; return the progress, None when no file has this key.

    Raises:
        ConfigError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            state: State = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: damaged checkpoint ({error}); remove it and run the step again") from error
    told = msgspec.json.decode(metadata["progress"], type=tuple[list[Epoch], int, float, str, list[str]])
    model.load_state_dict(_take(state, MODEL))
    restored = optimizer.state_dict()
    for k, v in _take(state, OPTIMIZER).items():
        index, name = k.split("/")
        restored["state"].setdefault(int(index), {})[name] = v
    optimizer.load_state_dict(restored)
    epochs, best, peak_rate, why, notes = told
    return Progress(epochs=epochs, state=_take(state, BEST), best=best, peak_rate=peak_rate, why=why, notes=notes)


def _take(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
