"""Write and read calibration inputs: a safetensors file of real inputs `input_0`, `input_1`, …, each `(samples, …)`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.network.exported import example_inputs
from edgecompress.network.weights import read_state, save_state

REMEDY = "run the quantize step again"


def save_calibration(inputs: Batch, path: Path) -> None:
    """Write calibration inputs to a file, for `read_calibration` and `load_calibration`."""
    save_state({f"input_{i}": x for i, x in enumerate(inputs)}, path)


def load_calibration(path: Path) -> Batch:
    """Return all calibration inputs of a file, each `(samples, …)`."""
    state = read_state(path)
    return tuple(state[f"input_{i}"] for i in range(len(state)))


def read_calibration(path: str, program: torch.export.ExportedProgram) -> list[Batch]:
    """Return the calibration samples of a file, each a tuple of inputs of batch 1 in the program's layout and dtypes.

    Raises:
        ConfigError: The path is empty, or the file is missing, damaged, empty, of other shapes than the inputs, or holds NaN or inf.
    """
    if not path:
        raise ConfigError("int8-static: needs calibration data; give some real inputs")
    try:
        tensors = load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: unreadable calibration data ({error}); {REMEDY}") from error
    columns = [_check_column(tensors.get(f"input_{i}"), wanted, f"{path}: input_{i}") for i, wanted in enumerate(example_inputs(program))]
    if len({len(column) for column in columns}) != 1:
        raise ConfigError(f"{path}: its inputs have {', '.join(str(len(c)) for c in columns)} samples; {REMEDY}")
    return list(zip(*(torch.split(column, 1) for column in columns), strict=True))


def _check_column(column: Tensor | None, wanted: Tensor, subject: str) -> Tensor:
    if column is None or column.ndim == 0 or len(column) == 0:
        raise ConfigError(f"{subject} has no samples; {REMEDY}")
    if column.shape[1:] != wanted.shape[1:]:
        raise ConfigError(f"{subject} has samples of shape {tuple(column.shape[1:])}, the model takes {tuple(wanted.shape[1:])}; {REMEDY}")
    if wanted.is_floating_point() != column.is_floating_point():
        found, due = (str(x.dtype).removeprefix("torch.") for x in (column, wanted))
        raise ConfigError(f"{subject} is {found}, the model takes {due}; {REMEDY}")
    if len(bad := (~torch.isfinite(column)).flatten(1).any(1).nonzero()):
        raise ConfigError(f"{subject} holds NaN or inf in {len(bad)} samples, first {int(bad[0])}; leave those samples out")
    return column.to(wanted.dtype).contiguous()
