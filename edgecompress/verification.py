"""What proves an artifact: run it in its own runtime, compare with the eager model, let it pass or not."""

import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.devices import open_device
from edgecompress.devices.protocol import RunnerReply
from edgecompress.devices.runner import infer
from edgecompress.distillation import agreement
from edgecompress.errors import DeviceError, ParityError, ToolchainError
from edgecompress.models import forward
from edgecompress.records import Parity, TensorSpec
from edgecompress.targets import Scheme
from edgecompress.weights import save_state

REFERENCE: Final = "reference.safetensors"
REFERENCE_SAMPLES: Final = 64
REFERENCE_BYTES: Final = 4_000_000
SQNR_CAP_DB: Final = 200.0


def run(path: Path, inputs: tuple[TensorSpec, ...], x: Tensor, *, threads: int = 2) -> Tensor:
    """Return the artifact's outputs `(n, …)` on `x`, `(n, …)` in the model's layout, one sample at a time in a process of its own.

    Several outputs are flattened and joined, `(n, features)`.
    """
    tensors, _ = run_each(path, inputs, (), (x,), threads=threads)
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten(1) for t in tensors], 1)


def run_each(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: tuple[Tensor, ...],
    *,
    threads: int = 2,
    timeout_s: float = 600.0,
    python: str | None = None,
) -> tuple[tuple[Tensor, ...], str]:
    """Return each of the artifact's outputs `(n, …)` on `batch`, both in the model's layout, and which runtime computed them.

    Args:
        inputs, outputs: As the manifest tells them; () for outputs that are no images.
        python: The interpreter whose runtime is meant; this one when None.

    Raises:
        ConfigError: The runtime refuses the file, or the inputs do not fit it.
        ToolchainError: The runtime died, took too long, or is not there.
    """
    arrays = [_permuted(x, spec, (0, 2, 3, 1)).numpy() for x, spec in zip(batch, inputs, strict=True)]
    told: list[RunnerReply] = []
    try:
        with open_device("local://") as device:
            found = infer(
                device,
                path,
                [np.ascontiguousarray(array) for array in arrays],
                threads=threads,
                timeout_s=timeout_s,
                python=python,
                on_reply=told.append,
            )
    except DeviceError as error:  # this machine is no device to its user
        raise ToolchainError(str(error).removeprefix("local://: ")) from error
    tensors = (torch.from_numpy(np.array(y)) for y in found)
    specs = outputs or (None,) * len(found)
    return tuple(_permuted(y, spec, (0, 3, 1, 2)) for y, spec in zip(tensors, specs, strict=True)), told[0].results[0].backend


def _permuted(x: Tensor, spec: TensorSpec | None, axes: tuple[int, ...]) -> Tensor:
    return x.permute(axes) if spec is not None and spec.layout == "NHWC" else x


def compare(outputs: Tensor, reference: Tensor) -> Parity:
    """Return how far `outputs` are from `reference`, both `(n, …)`.

    Raises:
        ParityError: The shapes differ, or a value is NaN or infinite.
    """
    if outputs.shape != reference.shape:
        raise ParityError(
            f"outputs have shape {tuple(outputs.shape)}, the model's {tuple(reference.shape)}; the converter changed the layout"
        )
    if not bool(reference.isfinite().all()):
        raise ParityError("the model's own outputs hold NaN or infinity on these inputs; nothing can be proved, mend the model or the data")
    if not bool(outputs.isfinite().all()):
        raise ParityError("outputs hold NaN or infinity where the model's are finite; try another scheme or route")
    outputs, reference = outputs.double(), reference.double()
    difference = outputs - reference
    max_abs = float(difference.abs().max())
    spread = float(reference.max() - reference.min())
    noise, signal = float(difference.square().sum()), float(reference.square().sum())
    return Parity(
        max_abs=max_abs,
        max_rel=max_abs / spread if spread > 0 else max_abs,
        sqnr_db=_sqnr_db(signal, noise),
        top1_agreement=agreement(outputs, reference),
        samples=len(outputs),
    )


def _sqnr_db(signal: float, noise: float) -> float:
    if noise == 0:
        return SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(signal / noise))) if signal > 0 else -SQNR_CAP_DB


def gate(parity: Parity, limits: Scheme, *, subject: str) -> None:
    """Let an artifact pass, or not.

    Raises:
        ParityError: A number is beyond its limit; names both.
    """
    failed = []
    if limits.max_rel is not None and parity.max_rel > limits.max_rel:
        failed.append(f"largest difference {parity.max_rel:.2g} of the output range, {limits.max_rel:g} allowed")
    if limits.min_agreement is not None:
        if parity.top1_agreement is not None and parity.top1_agreement < limits.min_agreement:
            failed.append(f"top-1 agreement {parity.top1_agreement:.2%} on {parity.samples} samples, {limits.min_agreement:.0%} required")
        if parity.top1_agreement is None and parity.sqnr_db < limits.min_sqnr_db:
            failed.append(f"SQNR {parity.sqnr_db:.1f} dB, {limits.min_sqnr_db:g} dB required")
    if failed:
        raise ParityError(
            f"{subject}: departs from the model: {'; '.join(failed)} (SQNR {parity.sqnr_db:.1f} dB); "
            "try more calibration samples, another scheme or --tflite-route"
        )


def keep_reference(folder: Path, inputs: Tensor, models: dict[str, nn.Module]) -> None:
    """Write `reference.safetensors`: a few inputs and each model's eager outputs, so that the artifacts can be verified anywhere."""
    n = max(1, min(REFERENCE_SAMPLES, len(inputs), REFERENCE_BYTES // max(1, inputs[0].numel() * 4)))
    x = inputs[:n]
    save_state({"input": x} | {name: forward(model, x) for name, model in models.items()}, folder / REFERENCE)


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an artifact is."""
    return path.with_name(f"{path.name}.json")
