"""Parity of two sets of outputs: SQNR, top-1 agreement and largest difference, and the check against a scheme's gate."""

import math
from typing import Final

import msgspec
import torch
from torch import Tensor

from edgecompress.errors import ParityError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import is_scores
from edgecompress.records import Parity
from edgecompress.targets import Gate

SQNR_CAP_DB: Final = 200.0  # keeps the SQNR of equal outputs finite; float32 outputs that differ stay below


def measure_parity(outputs: Batch, reference: Batch) -> Parity:
    """Return the parity of `outputs` with `reference`; each output is compared by its own range and power, and the worst numbers count.

    Raises:
        ParityError: The shapes differ, or a value is NaN or infinite.
    """
    if not batches.has_same_shapes(outputs, reference):
        found, wanted = (" and ".join(str(tuple(y.shape)) for y in ys) for ys in (outputs, reference))
        raise ParityError(f"outputs have shape {found}, the model's {wanted}; the converter changed the layout")
    if not batches.is_finite(reference):
        raise ParityError("the model's own outputs hold NaN or infinity on these inputs; nothing can be proved, mend the model or the data")
    if not batches.is_finite(outputs):
        raise ParityError("outputs hold NaN or infinity where the model's are finite; try another scheme or route")
    max_abs, max_rel, sqnr = zip(*(_measure_output(y, wanted) for y, wanted in zip(outputs, reference, strict=True)), strict=True)
    return Parity(
        max_abs=max(max_abs),
        max_rel=max(max_rel),
        sqnr_db=min(sqnr),
        values_sqnr_db=min((db for db, wanted in zip(sqnr, reference, strict=True) if not is_scores(wanted)), default=None),
        top1_agreement=top1_agreement(outputs, reference),
        samples=batches.count_samples(outputs),
    )


def _measure_output(output: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return the largest difference, that difference over the range of the reference, and the SQNR in dB."""
    max_abs = float((output.double() - reference.double()).abs().max())
    spread = float(reference.double().max() - reference.double().min())
    return max_abs, max_abs / spread if spread > 0 else max_abs, sqnr_db(output, reference)


def sqnr_db(output: Tensor, reference: Tensor) -> float:
    """Return the SQNR, 10·log10(Σ reference² / Σ difference²), within ±200 dB; equal infinities of masks are left out, NaN is all noise."""
    output, reference = output.double(), reference.double()
    difference = torch.where(output == reference, 0.0, output - reference)
    noise, signal = float(difference.square().sum()), float(reference[reference.isfinite()].square().sum())
    if noise == 0:
        return SQNR_CAP_DB
    if not math.isfinite(noise) or signal == 0:
        return -SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(signal / noise)))


def worst_sqnr_db(outputs: Batch, reference: Batch) -> float:
    """Return the smallest SQNR in dB of several outputs."""
    return min(sqnr_db(y, wanted) for y, wanted in zip(outputs, reference, strict=True))


def top1_agreement(outputs: Batch, reference: Batch) -> float | None:
    """Return the fraction of samples with the same arg-max, the smallest of several outputs; None if no output holds class scores."""
    pairs = zip(outputs, reference, strict=True)
    return min((float((y.argmax(1) == wanted.argmax(1)).double().mean()) for y, wanted in pairs if is_scores(wanted)), default=None)


def describe_shortfalls(parity: Parity, limits: Gate) -> str:
    """Return a text that names each number beyond its limit, with both; "" if all limits are kept."""
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


def relax_gate(limits: Gate, samples: int) -> Gate:
    """Return `limits` with two standard errors less agreement, for so few samples: one answer of 64 is 1.6% already."""
    share = limits.min_agreement
    if share is None:
        return limits
    return msgspec.structs.replace(limits, min_agreement=max(0.0, share - 2 * math.sqrt(share * (1 - share) / samples)))
