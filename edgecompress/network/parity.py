"""Parity of two sets of outputs: SQNR, top-1 agreement and largest difference, and the check against a scheme's gate."""

import math
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor

from edgecompress.errors import ParityError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.channels import MIN_CHANNEL_VALUES, choose_channel_axis, find_constant_channel
from edgecompress.network.output_kinds import KINDS, agreement, channel_axis, guess_specs
from edgecompress.network.outputs import Specs
from edgecompress.records import Parity
from edgecompress.records.outputs import OutputSpec
from edgecompress.targets import Gate

SQNR_CAP_DB: Final = 200.0  # keeps the SQNR of equal outputs finite; float32 outputs that differ stay below
MIN_INTEGER_AGREEMENT: Final = 0.99  # of an arg-max in a float file: rounding decides ties, and few answers are ties
MIN_VARIATION: Final = 0.02  # 8 bits tell 0.4% of the largest magnitude apart


def measure_parity(outputs: Batch, reference: Batch, specs: Specs | None = None) -> Parity:
    """Return the parity of `outputs` with `reference`; each output is compared by its kind, range and power, and the worst numbers count.

    Values whose channels have ranges of their own are compared channel by channel. A channel of any output that is constant here and not in
    the reference counts as lost. Integers are compared by agreement alone.

    Args:
        specs: The kinds of the outputs; None guesses them from the shapes.

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
    kinds = specs or guess_specs(reference)
    judged = [each for each in zip(outputs, reference, kinds, strict=True) if each[2].kind != "ignore"]
    numbers = [_measure_numbers(y, wanted) for y, wanted, _ in judged if wanted.is_floating_point()]
    values = [find_worst_channel(y, wanted, spec) for y, wanted, spec in judged if _is_judged_by_values(wanted, spec)]
    values += [lost for y, wanted, spec in judged if (lost := _find_lost_channel(y, wanted, spec)) is not None]
    worst = min(values, key=lambda each: each.sqnr_db, default=None)
    integers = [agreement(y, wanted, spec) for y, wanted, spec in judged if not wanted.is_floating_point()]
    return Parity(
        max_abs=max((each[0] for each in numbers), default=0.0),
        max_rel=max((each[1] for each in numbers), default=0.0),
        sqnr_db=min([*(each[2] for each in numbers), *(each.sqnr_db for each in values)], default=SQNR_CAP_DB),
        values_sqnr_db=worst.sqnr_db if worst else None,
        worst_channel=worst.name if worst else "",
        top1_agreement=top1_agreement(outputs, reference, kinds),
        integer_agreement=min(integers, default=None),
        samples=batches.count_samples(outputs),
    )


def _is_judged_by_values(output: Tensor, spec: OutputSpec) -> bool:
    return output.is_floating_point() and not KINDS[spec.kind].has_classes


def _measure_numbers(output: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return the largest difference, that difference over the range of the reference, and the SQNR in dB."""
    max_abs = float((output.double() - reference.double()).abs().max())
    spread = float(reference.double().max() - reference.double().min())
    return max_abs, max_abs / spread if spread > 0 else max_abs, sqnr_db(output, reference)


class ChannelParity(NamedTuple):
    """The SQNR in dB of the worst channel of an output, and the name of that channel."""

    sqnr_db: float
    name: str = ""


def find_worst_channel(output: Tensor, reference: Tensor, spec: OutputSpec) -> ChannelParity:
    """Return the worst channel where channels have ranges of their own, and the whole tensor otherwise.

    A channel that is constant in `output` though it varies in `reference` has the lowest SQNR there is. Independent probabilities and
    embeddings share one range by their nature; most of hundreds of probabilities are near zero, and their own SQNR would say nothing.
    """
    axis = None if spec.kind in {"independent", "embedding"} else choose_channel_axis(reference)
    if axis is None:
        return _measure_channel(output, reference, spec.name)
    channels = zip(output.movedim(axis, 0), reference.movedim(axis, 0), strict=True)
    found = [_measure_channel(y, wanted, f"channel {i} of axis {axis} of {spec.name}") for i, (y, wanted) in enumerate(channels)]
    return min(found, key=lambda each: each.sqnr_db)


def _find_lost_channel(output: Tensor, reference: Tensor, spec: OutputSpec) -> ChannelParity | None:
    axis = channel_axis(spec) % reference.ndim
    lost = find_constant_channel(output, reference, axis)
    return (
        None
        if lost is None
        else ChannelParity(-SQNR_CAP_DB, f"channel {lost} of axis {axis} of {spec.name}, which is constant in the file")
    )


def _measure_channel(output: Tensor, reference: Tensor, name: str) -> ChannelParity:
    if _is_lost(output, reference):
        return ChannelParity(-SQNR_CAP_DB, f"{name}, which is constant in the file")
    return ChannelParity(sqnr_db(output, reference), name)


def _is_lost(output: Tensor, reference: Tensor) -> bool:
    """Whether a channel is constant though the reference varies by more than MIN_VARIATION of its magnitude over a few values or more."""
    if reference.numel() < MIN_CHANNEL_VALUES:
        return False
    spread = float(reference.double().max() - reference.double().min())
    return float(output.max() - output.min()) == 0 and spread > MIN_VARIATION * float(reference.abs().max())


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
    """Return the smallest SQNR in dB of several outputs; integers, whose numbers are no magnitudes, count only where all outputs are."""
    pairs = list(zip(outputs, reference, strict=True))
    numbers = [(y, wanted) for y, wanted in pairs if wanted.is_floating_point()]
    return min(sqnr_db(y, wanted) for y, wanted in numbers or pairs)


def top1_agreement(outputs: Batch, reference: Batch, specs: Specs | None = None) -> float | None:
    """Return the fraction of samples or positions with the same arg-max, the smallest of several outputs; None without class scores."""
    kinds = specs or guess_specs(reference)
    return min(
        (
            agreement(y, wanted, spec)
            for y, wanted, spec in zip(outputs, reference, kinds, strict=True)
            if KINDS[spec.kind].has_classes and wanted.is_floating_point()
        ),
        default=None,
    )


def describe_shortfalls(parity: Parity, limits: Gate) -> str:
    """Return a text that names each number beyond its limit, with both; "" if all limits are kept."""
    failed = []
    if parity.integer_agreement is not None and parity.integer_agreement < (least := limits.min_agreement or MIN_INTEGER_AGREEMENT):
        failed.append(f"{parity.integer_agreement:.2%} of the integers agree on {parity.samples} samples, {least:.0%} required")
    if limits.max_rel is not None and parity.max_rel > limits.max_rel:
        failed.append(f"largest difference {parity.max_rel:.2g} of the output range, {limits.max_rel:g} allowed")
    if limits.min_agreement is not None:
        if parity.top1_agreement is not None and parity.top1_agreement < limits.min_agreement:
            failed.append(f"top-1 agreement {parity.top1_agreement:.2%} on {parity.samples} samples, {limits.min_agreement:.0%} required")
        if parity.values_sqnr_db is not None and parity.values_sqnr_db < limits.min_sqnr_db:
            place = f" of {parity.worst_channel}" if parity.worst_channel else ""
            failed.append(f"SQNR {parity.values_sqnr_db:.1f} dB{place}, {limits.min_sqnr_db:g} dB required")
    return f"{'; '.join(failed)} (SQNR {parity.sqnr_db:.1f} dB)" if failed else ""


def relax_gate(limits: Gate, samples: int) -> Gate:
    """Return `limits` with two standard errors less agreement, for so few samples: one answer of 64 is 1.6% already."""
    share = limits.min_agreement
    if share is None:
        return limits
    return msgspec.structs.replace(limits, min_agreement=max(0.0, share - 2 * math.sqrt(share * (1 - share) / samples)))
