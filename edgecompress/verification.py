"""What proves an artifact: run it in its own runtime, compare with the eager model, let it pass or not."""

import math
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edgecompress import batches
from edgecompress.batches import Batch
from edgecompress.devices import open_device
from edgecompress.devices.protocol import RunnerReply
from edgecompress.devices.runner import infer
from edgecompress.distillation import agreement, is_scores
from edgecompress.errors import ConfigError, DeviceError, ParityError, ToolchainError
from edgecompress.models import forward
from edgecompress.records import Artifact, ConversionReply, Parity, TensorSpec
from edgecompress.targets import Scheme
from edgecompress.weights import State, read_state, save_state

REFERENCE: Final = "reference.safetensors"
REFERENCE_SAMPLES: Final = 64
REFERENCE_BYTES: Final = 4_000_000
SQNR_CAP_DB: Final = 200.0


def run(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: Batch,
    *,
    threads: int = 2,
    timeout_s: float = 600.0,
    python: str | None = None,
) -> tuple[Batch, str]:
    """Return each of the artifact's outputs `(n, …)` on `batch`, both in the model's layout, and which runtime computed them.

    Args:
        inputs, outputs: As the manifest tells them; () for outputs that are no images.
        python: The interpreter whose runtime is meant; this one when None.

    Raises:
        ConfigError: The runtime refuses the file, or the inputs do not fit it.
        ToolchainError: The runtime died, took too long, or is not there.
    """
    arrays = to_layout(batch, inputs)
    told: list[RunnerReply] = []
    try:
        with open_device("local://") as device:
            found = infer(
                device,
                path,
                arrays,
                threads=threads,
                timeout_s=timeout_s,
                python=python,
                on_reply=told.append,
            )
    except (ConfigError, DeviceError) as error:  # this machine is no device to its user
        kind = ToolchainError if isinstance(error, DeviceError) else ConfigError
        raise kind(str(error).removeprefix("local://: ")) from error
    return from_layout(found, outputs), told[0].results[0].backend


def to_layout(batch: Batch, specs: tuple[TensorSpec, ...]) -> list[np.ndarray]:
    """Return inputs in the layouts that an artifact takes."""
    moved = (x.permute(0, 2, 3, 1) if spec.layout == "NHWC" else x for x, spec in zip(batch, specs, strict=True))
    return [np.ascontiguousarray(x.numpy()) for x in moved]


def from_layout(arrays: Sequence[np.ndarray], specs: tuple[TensorSpec, ...]) -> Batch:
    """Return what an artifact gave in the model's layouts; without specs no output is an image."""
    if specs and len(arrays) != len(specs):
        raise ParityError(f"{len(arrays)} outputs, the converter told of {len(specs)}; export again")
    layouts = [spec.layout for spec in specs] or [""] * len(arrays)
    tensors = (torch.from_numpy(np.array(y)) for y in arrays)
    return tuple(y.permute(0, 3, 1, 2) if layout == "NHWC" else y for y, layout in zip(tensors, layouts, strict=True))


def compare(outputs: Batch, reference: Batch) -> Parity:
    """Return how far `outputs` are from `reference`, each by its own range and power; of several outputs the worst of each number.

    Raises:
        ParityError: The shapes differ, or a value is NaN or infinite.
    """
    if not batches.same(outputs, reference):
        found, wanted = (" and ".join(str(tuple(y.shape)) for y in ys) for ys in (outputs, reference))
        raise ParityError(f"outputs have shape {found}, the model's {wanted}; the converter changed the layout")
    if not batches.is_finite(reference):
        raise ParityError("the model's own outputs hold NaN or infinity on these inputs; nothing can be proved, mend the model or the data")
    if not batches.is_finite(outputs):
        raise ParityError("outputs hold NaN or infinity where the model's are finite; try another scheme or route")
    max_abs, max_rel, left_db = zip(*(_differences(y, wanted) for y, wanted in zip(outputs, reference, strict=True)), strict=True)
    return Parity(
        max_abs=max(max_abs),
        max_rel=max(max_rel),
        sqnr_db=min(left_db),
        values_sqnr_db=min((db for db, wanted in zip(left_db, reference, strict=True) if not is_scores(wanted)), default=None),
        top1_agreement=agreement(outputs, reference),
        samples=batches.size(outputs),
    )


def _differences(output: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return the largest difference, the same over the range of the reference, and SQNR in dB."""
    max_abs = float((output.double() - reference.double()).abs().max())
    spread = float(reference.double().max() - reference.double().min())
    return max_abs, max_abs / spread if spread > 0 else max_abs, sqnr_db(output, reference)


def sqnr_db(output: Tensor, reference: Tensor) -> float:
    """Return 10·log10(Σ reference² / Σ difference²), within ±200; equal infinities (a mask's) count for nothing, NaN is all noise."""
    output, reference = output.double(), reference.double()
    difference = torch.where(output == reference, 0.0, output - reference)
    noise, signal = float(difference.square().sum()), float(reference[reference.isfinite()].square().sum())
    if noise == 0:
        return SQNR_CAP_DB
    if not math.isfinite(noise) or signal == 0:
        return -SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(signal / noise)))


def shortfalls(parity: Parity, limits: Scheme) -> str:
    """Return each number that is beyond its limit, with both; "" when all are within."""
    failed = []
    if limits.max_rel is not None and parity.max_rel > limits.max_rel:
        failed.append(f"largest difference {parity.max_rel:.2g} of the output range, {limits.max_rel:g} allowed")
    if limits.min_agreement is not None:
        if parity.top1_agreement is not None and parity.top1_agreement < limits.min_agreement:
            failed.append(f"top-1 agreement {parity.top1_agreement:.2%} on {parity.samples} samples, {limits.min_agreement:.0%} required")
        if parity.values_sqnr_db is not None and parity.values_sqnr_db < limits.min_sqnr_db:
            other = " of the outputs that are no scores" if parity.top1_agreement is not None else ""
            failed.append(f"SQNR {parity.values_sqnr_db:.1f} dB{other}, {limits.min_sqnr_db:g} dB required")
    return f"{'; '.join(failed)} (SQNR {parity.sqnr_db:.1f} dB)" if failed else ""


def allowing(limits: Scheme, samples: int) -> Scheme:
    """Return `limits` for as few as `samples`: two standard errors less agreement, for one in 64 is 1.6% already."""
    share = limits.min_agreement
    if share is None:
        return limits
    return msgspec.structs.replace(limits, min_agreement=max(0.0, share - 2 * math.sqrt(share * (1 - share) / samples)))


def gate(parity: Parity, limits: Scheme, *, subject: str, remedy: str = "export it again") -> None:
    """Let an artifact pass, or not.

    Raises:
        ParityError: A number is beyond its limit; names both.
    """
    if failed := shortfalls(parity, limits):
        raise ParityError(f"{subject}: departs from the model: {failed}; {remedy}")


def check_interpreter(python: str) -> None:
    """Refuse an interpreter that is not there.

    Raises:
        ConfigError: It is no file.
    """
    if not Path(python).is_file():
        raise ConfigError(f"{python}: no such interpreter; give the Python of an environment that has the other runtime")


def check_runtime(
    path: Path,
    manifest: Artifact | ConversionReply,
    python: str,
    inputs: Batch,
    reference: Batch,
    limits: Scheme,
    *,
    subject: str,
) -> str:
    """Hold an artifact that agrees with its model here to the same limits in another interpreter's runtime; return what was found.

    Raises:
        ConfigError: No such interpreter.
        ParityError: That runtime computes it wrongly.
        ToolchainError: It has no runtime for the file, refused it, or died of it.
    """
    check_interpreter(python)
    try:
        outputs, runtime = run(path, manifest.inputs, manifest.outputs, inputs, python=str(Path(python).absolute()))
    except ConfigError as error:  # here it runs: nothing that was given is wrong
        raise ToolchainError(f"{subject} in {python}: {error}, or take another scheme") from error
    named = f"{subject} in {runtime}"
    try:
        parity = compare(outputs, reference)
    except ParityError as error:
        raise ParityError(f"{named}: {error}") from error
    remedy = "here it agrees, so that runtime computes it wrongly: update the runtime there or take another scheme"
    gate(parity, limits, subject=named, remedy=remedy)
    told = f"top-1 agreement {parity.top1_agreement:.2%}" if parity.top1_agreement is not None else f"SQNR {parity.sqnr_db:.1f} dB"
    return f"also verified in {runtime}: {told} on {parity.samples} samples"


def keep_reference(folder: Path, inputs: Batch, models: dict[str, nn.Module]) -> None:
    """Write `reference.safetensors`: a few inputs and each model's eager outputs, so that the artifacts can be verified anywhere.

    It holds `input_0`, `input_1`, … and for each model `NAME_output_0`, …, each `(n, …)` in the model's layout.
    """
    sample = sum(x[0].numel() * x.element_size() for x in inputs)
    x = batches.take(inputs, slice(max(1, min(REFERENCE_SAMPLES, REFERENCE_BYTES // max(1, sample)))))
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


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an artifact is."""
    return path.with_name(f"{path.name}.json")
