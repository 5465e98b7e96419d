"""Reference inputs and outputs kept beside artifacts, so that an artifact can be verified where the model is not."""

from itertools import count, takewhile
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.surgery import forward
from edgecompress.network.weights import State, read_state, save_state

REFERENCE: Final = "reference.safetensors"
REFERENCE_SAMPLES: Final = 64
REFERENCE_BYTES: Final = 4_000_000


def write_reference(folder: Path, inputs: Batch, models: dict[str, nn.Module]) -> None:
    """Write `reference.safetensors`: a few inputs and each model's eager outputs, so that the artifacts can be verified anywhere.

    It holds `input_0`, `input_1`, … and for each model `NAME_output_0`, …, each `(n, …)` in the model's layout.
    """
    sample = sum(x[0].numel() * x.element_size() for x in inputs)
    x = batches.take_samples(inputs, slice(max(1, min(REFERENCE_SAMPLES, REFERENCE_BYTES // max(1, sample)))))
    state = _named("input", x)
    for name, model in models.items():
        state |= _named(f"{name}_output", forward(model, x))
    save_state(state, folder / REFERENCE)


def read_reference(folder: Path, model: str) -> tuple[Batch, Batch]:
    """Return the inputs kept in `folder` and the eager outputs of `model`, "dense" or "compressed".

    Raises:
        ConfigError: They are missing or damaged.
    """
    path = folder / REFERENCE
    state = read_state(path)
    inputs, outputs = (_tensors(state, prefix) for prefix in ("input", f"{model}_output"))
    if not inputs or not outputs:
        raise ConfigError(f"{path}: holds no inputs, or no outputs of the {model} model; export again")
    return inputs, outputs


def _named(prefix: str, batch: Batch) -> dict[str, Tensor]:
    return {f"{prefix}_{i}": x for i, x in enumerate(batch)}


def _tensors(state: State, prefix: str) -> Batch:
    return tuple(state[f"{prefix}_{i}"] for i in takewhile(lambda i: f"{prefix}_{i}" in state, count()))
