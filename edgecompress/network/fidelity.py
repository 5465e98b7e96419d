"""Fidelity of a compressed network: how much of every output of the dense network is left, each by its kind."""

from typing import Final

import msgspec

from edgecompress.errors import ParityError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.channels import find_constant_channel
from edgecompress.network.output_kinds import KINDS, channel_axis
from edgecompress.records.outputs import Fidelity, OutputFidelity, OutputSpec

NOTHING_KEPT: Final = 0.0


def measure_fidelity(outputs: Batch, reference: Batch, specs: tuple[OutputSpec, ...], *, min_kept: float | None = None) -> Fidelity:
    """Return the fidelity of `outputs` to the dense network's; ignored outputs are left out.

    An output with NaN or infinity where the dense network has numbers keeps nothing, nor does one with a channel that became constant: the
    answers may not show on these inputs what is missing.

    Args:
        outputs, reference: Each `(n, …)`, one for each of `specs`.
        min_kept: Bound for every output; None for that of its kind.

    Raises:
        ParityError: The shapes differ, or the dense network's outputs are not finite.
    """
    if not batches.has_same_shapes(outputs, reference):
        found, due = (" and ".join(str(tuple(y.shape)) for y in ys) for ys in (outputs, reference))
        raise ParityError(f"outputs have shape {found}, the dense network's {due}; the converter changed the layout")
    if not batches.is_finite(reference):
        raise ParityError("the dense network's own outputs hold NaN or infinity on these inputs; mend the model or the data")
    measured = []
    for y, wanted, spec in zip(outputs, reference, specs, strict=True):
        bound = KINDS[spec.kind].min_kept
        if bound is None:
            continue
        least = bound if min_kept is None else min_kept
        if not batches.is_finite((y,)):
            lost = OutputFidelity(name=spec.name, kind=spec.kind, kept=NOTHING_KEPT, min_kept=least, max_abs=float("inf"))
            measured.append(lost)
        else:
            fidelity, axis = KINDS[spec.kind].measure(y, wanted, spec, least), channel_axis(spec)
            if (constant := find_constant_channel(y, wanted, axis)) is not None:
                fidelity = msgspec.structs.replace(fidelity, kept=NOTHING_KEPT, channel=constant, channel_axis=axis % y.ndim)
            measured.append(fidelity)
    return Fidelity(outputs=tuple(measured), samples=batches.count_samples(reference))


def describe_output_fidelity(each: OutputFidelity) -> str:
    """Return e.g. `keeps 96.1% of the answers` or `keeps 93.4% (cosine 0.9912, nearest neighbours 93.4%)`."""
    answers = " of the answers" if each.has_answers and each.channel is None else ""
    details = f" ({', '.join(each.details)})" if each.details else ""
    return f"keeps {each.kept:.1%}{answers}{details}"


def describe_loss(fidelity: Fidelity) -> str:
    """Return a text that names each output beyond its bound, with both numbers; "" where every bound is kept."""
    return "; ".join(
        f"{each.name} ({each.kind}) {describe_output_fidelity(each)}, {each.min_kept:.0%} must be kept"
        for each in fidelity.outputs
        if each.kept < each.min_kept
    )
