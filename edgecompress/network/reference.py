"""Write and read the reference inputs and outputs beside artifacts, with which they can be verified without the model."""

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
MAX_REFERENCE_SAMPLES: Final = 64  # enough to notice a wrong artifact; a gate on few samples is relaxed
MAX_REFERENCE_BYTES: Final = 4_000_000  # keeps the file small beside the artifacts


def write_reference(folder: Path, inputs: Batch, models: dict[str, nn.Module]) -> None:
    """Write `reference.safetensors`: a few inputs and each model's eager outputs, with which artifacts can be verified anywhere.

    The file holds `input_0`, `input_1`, … and for each model `NAME_output_0`, …, each `(n, …)` in the model's layout.
    """
    sample = sum(x[0].numel() * x.element_size() for x in inputs)
    x = batches.take_samples(inputs, slice(max(1, min(MAX_REFERENCE_SAMPLES, MAX_REFERENCE_BYTES // max(1, sample)))))
    state = _name_tensors("input", x)
    for name, model in models.items():
        state |= _name_tensors(f"{name}_output", forward(model, x))
    save_state(state, folder / REFERENCE)


def read_reference(folder: Path, model: str) -> tuple[Batch, Batch]:
    """Return the inputs kept in `folder` and the eager outputs of `model`, "dense" or "compressed".

    Raises:
        ConfigError: The file is missing or damaged.
    """
    path = folder / REFERENCE
    state = read_state(path)
    inputs, outputs = (_collect_tensors(state, prefix) for prefix in ("input", f"{model}_output"))
    if not inputs or not outputs:
        raise ConfigError(f"{path}: holds no inputs, or no outputs of the {model} model; export again")
    return inputs, outputs


def _name_tensors(prefix: str, batch: Batch) -> dict[str, Tensor]:
    return {f"{prefix}_{i}": x for i, x in enumerate(batch)}


def _collect_tensors(state: State, prefix: str) -> Batch:
    return tuple(state[f"{prefix}_{i}"] for i in takewhile(lambda i: f"{prefix}_{i}" in state, count()))
