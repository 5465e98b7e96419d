"""Calibration samples as converter programs read them: real inputs in a safetensors file, `input_0`, `input_1`, …, each `(samples, …)`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgecompress.errors import ConfigError
from edgecompress.program import example_inputs

AGAIN = "run the quantize step again"


def read_calibration(path: str, program: torch.export.ExportedProgram) -> list[tuple[Tensor, ...]]:
    """Return the samples, each a tuple of inputs of batch 1 in the program's layout and dtypes.

    Raises:
        ConfigError: No path, or the file is missing, damaged, empty, of other shapes than the program's inputs, or holds NaN or inf.
    """
    if not path:
        raise ConfigError("int8-static: needs calibration data; give some real inputs")
    try:
        tensors = load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: unreadable calibration data ({error}); {AGAIN}") from error
    columns = [_column(tensors.get(f"input_{i}"), wanted, f"{path}: input_{i}") for i, wanted in enumerate(example_inputs(program))]
    if len({len(column) for column in columns}) != 1:
        raise ConfigError(f"{path}: its inputs have {', '.join(str(len(c)) for c in columns)} samples; {AGAIN}")
    return list(zip(*(torch.split(column, 1) for column in columns), strict=True))


def _column(column: Tensor | None, wanted: Tensor, subject: str) -> Tensor:
    if column is None or column.ndim == 0 or len(column) == 0:
        raise ConfigError(f"{subject} has no samples; {AGAIN}")
    if column.shape[1:] != wanted.shape[1:]:
        raise ConfigError(f"{subject} has samples of shape {tuple(column.shape[1:])}, the model takes {tuple(wanted.shape[1:])}; {AGAIN}")
    if not bool(torch.isfinite(column).all()):
        raise ConfigError(f"{subject} holds NaN or inf; leave those samples out")
    return column.to(wanted.dtype).contiguous()
