"""The kinds of outputs: how each one is distilled, how much of it a compressed network keeps, and the least that it must keep.

A new kind is one row of KINDS, and its name in `records.outputs.OutputKind`. One number of every kind, `kept`, is the fraction of the dense
network that is left; bounds are for it, and they can be compared between kinds.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompress.network.channels import channel_scales, choose_channel_axis, usual_channel_axis
from edgecompress.records.outputs import OutputFidelity, OutputKind, OutputSpec

CAP_DB: Final = 200.0  # keeps the SQNR of equal outputs finite
MIN_PROBABILITY: Final = 0.05  # smaller probabilities answer nothing, and most of hundreds of them are near zero
MIN_LOG: Final = 1e-7  # float32 distinguishes probabilities near 1 by so much
MIN_NEIGHBOUR_SAMPLES: Final = 10  # among fewer samples a neighbour says little
MAX_NEIGHBOUR_SAMPLES: Final = 2000  # the table of all cosines has 32 MB
COSINE_WEIGHT: Final = 5.0  # a cosine of 0.99 counts as 95% of the neighbours: texts and faces are told apart at some 0.8


class Kind(NamedTuple):
    """One kind of output.

    Attributes:
        description: What such an output is.
        kept: What the number `kept` means, in words that follow "keeps".
        min_kept: The least that a published file must keep; None where the output is not judged.
        reason: Why this bound.
        divergence: The loss of training and planning: (student, teacher, spec, temperature) → a scalar.
        measure: The fidelity of an output: (output, reference, spec, min_kept).
        has_classes: Whether answers are the largest of several numbers.
    """

    description: str
    kept: str
    min_kept: float | None
    reason: str
    divergence: Callable[[Tensor, Tensor, OutputSpec, float], Tensor]
    measure: Callable[[Tensor, Tensor, OutputSpec, float], OutputFidelity]
    has_classes: bool = False


def guess_specs(outputs: Sequence[Tensor]) -> tuple[OutputSpec, ...]:
    """Return specs for a caller who knows nothing but outputs: integers are classes, float `(n, k > 1)` are logits, others are values."""
    return tuple(
        OutputSpec(name=f"output_{i}", kind=_guess_kind(y), source="its shape, since nothing else is known") for i, y in enumerate(outputs)
    )


def _guess_kind(output: Tensor) -> OutputKind:
    if not output.is_floating_point():
        return "classes"
    return "logits" if output.ndim == 2 and output.shape[1] > 1 else "values"


def class_axis(spec: OutputSpec) -> int:
    """Return the axis of an output's classes."""
    return 1 if spec.axis is None else spec.axis


def channel_axis(spec: OutputSpec) -> int:
    """Return the axis of an output's classes, events, values or directions."""
    return -1 if spec.axis is None and spec.kind == "embedding" else class_axis(spec)


def agreement(output: Tensor, reference: Tensor, spec: OutputSpec) -> float:
    """Return the fraction of samples or positions with the same class; integers in the reference are classes already."""
    if not reference.is_floating_point():
        return float((output == reference).double().mean())
    axis = class_axis(spec)
    return float((output.argmax(axis) == reference.argmax(axis)).double().mean())


def to_logits(output: Tensor, spec: OutputSpec) -> Tensor:
    """Return the logarithm of probabilities; logits stay as they are."""
    return output.float().clamp_min(MIN_LOG).log() if spec.kind == "probabilities" else output.float()


def to_probabilities(output: Tensor, reference: Tensor) -> Tensor:
    """Return independent probabilities; outputs whose reference leaves [0, 1] are their logits."""
    beyond = bool((reference < 0).any() or (reference > 1).any())
    return output.float().sigmoid() if beyond else output.float()


def _class_divergence(student: Tensor, teacher: Tensor, spec: OutputSpec, temperature: float) -> Tensor:
    """Return T²·KL(teacher ‖ student) in nats a sample, the mean over positions."""
    axis = class_axis(spec)
    p = F.log_softmax(to_logits(teacher, spec) / temperature, axis)
    q = F.log_softmax(to_logits(student, spec) / temperature, axis)
    positions = teacher.numel() / teacher.shape[axis]
    return F.kl_div(q, p, reduction="sum", log_target=True) / positions * temperature**2


def _independent_divergence(student: Tensor, teacher: Tensor, _: OutputSpec, __: float) -> Tensor:
    """Return the Kullback-Leibler divergence of independent events in nats a sample, summed over events."""
    p = to_probabilities(teacher, teacher).clamp(MIN_LOG, 1 - MIN_LOG)
    q = to_probabilities(student, teacher).clamp(MIN_LOG, 1 - MIN_LOG)
    each = p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())
    return each.sum() / len(teacher)


def _values_divergence(student: Tensor, teacher: Tensor, spec: OutputSpec, _: float) -> Tensor:
    """Return the mean over channels of the squared error over the squared spread of the teacher's values."""
    student, teacher = student.float(), teacher.float()
    power = _signal(teacher, choose_channel_axis(teacher), spec).square()
    return ((student - teacher).square() / power.clamp_min(1e-12)).mean()


def _embedding_divergence(student: Tensor, teacher: Tensor, spec: OutputSpec, _: float) -> Tensor:
    """Return the mean of 1 − cosine."""
    return (1 - _cosines(student.float(), teacher.float(), spec)).mean()


def _no_divergence(student: Tensor, _: Tensor, __: OutputSpec, ___: float) -> Tensor:
    return student.new_zeros((), dtype=torch.float32)


def _measure_classes(output: Tensor, reference: Tensor, spec: OutputSpec, min_kept: float) -> OutputFidelity:
    same = agreement(output, reference, spec)
    return _describe(output, reference, spec, min_kept, kept=same, agreement=same)


def _measure_independent(output: Tensor, reference: Tensor, spec: OutputSpec, min_kept: float) -> OutputFidelity:
    p, q = to_probabilities(reference, reference).double(), to_probabilities(output, reference).double()
    active = (p > MIN_PROBABILITY) | (q > MIN_PROBABILITY)
    error = float((p - q)[active].square().mean().sqrt()) if bool(active.any()) else 0.0
    same = float(((p > 0.5) == (q > 0.5))[active].double().mean()) if bool(active.any()) else 1.0
    return _describe(output, reference, spec, min_kept, kept=max(0.0, 1 - error), agreement=same)


def _measure_values(output: Tensor, reference: Tensor, spec: OutputSpec, min_kept: float) -> OutputFidelity:
    output, reference = output.double(), reference.double()
    axis = choose_channel_axis(reference)
    axis = usual_channel_axis(reference) if axis is None else axis
    error = channel_scales(output - reference, axis, centred=False) / _signal(reference, axis, spec)
    error = torch.nan_to_num(error.flatten(), nan=0.0, posinf=1e10)  # 0 / 0 is a channel of zeros that stays one
    worst = int(error.argmax())
    relative = float(error.max())
    kept = max(0.0, 1 - relative)
    if spec.tolerance is not None:
        kept = float(((output - reference).abs() <= spec.tolerance).double().mean())
    return _describe(
        output,
        reference,
        spec,
        min_kept,
        kept=kept,
        relative_error=relative,
        sqnr_db=min(CAP_DB, -20 * math.log10(relative)) if relative > 0 else CAP_DB,
        channel=None if axis is None else worst,
        channel_axis=axis,
    )


def _measure_embedding(output: Tensor, reference: Tensor, spec: OutputSpec, min_kept: float) -> OutputFidelity:
    cosine = float(_cosines(output.double(), reference.double(), spec).mean())
    same = None
    if len(reference) >= MIN_NEIGHBOUR_SAMPLES:
        few = slice(MAX_NEIGHBOUR_SAMPLES)
        same = float((_nearest(output[few]) == _nearest(reference[few])).double().mean())
    kept = max(0.0, 1 - COSINE_WEIGHT * (1 - cosine))
    return _describe(
        output, reference, spec, min_kept, kept=kept if same is None else min(kept, same), agreement=None, cosine=cosine, neighbours=same
    )


def _describe(output: Tensor, reference: Tensor, spec: OutputSpec, min_kept: float, **found: float | int | None) -> OutputFidelity:
    largest = float((output.double() - reference.double()).abs().max())
    return OutputFidelity(name=spec.name, kind=spec.kind, min_kept=min_kept, max_abs=largest, **found)  # type: ignore[arg-type]


def _signal(reference: Tensor, axis: int | None, spec: OutputSpec) -> Tensor:
    """Return the magnitude that errors are divided by, which broadcasts: the standard deviation, at least a tenth of the root mean square.

    A channel that hardly varies has no standard deviation to speak of; its level then says which differences are large.
    """
    if spec.scale is not None:
        return torch.tensor(spec.scale, dtype=reference.dtype)
    return torch.maximum(channel_scales(reference, axis), 0.1 * channel_scales(reference, axis, centred=False))


def _cosines(output: Tensor, reference: Tensor, spec: OutputSpec) -> Tensor:
    return F.cosine_similarity(output, reference, dim=channel_axis(spec), eps=1e-12)


def _nearest(embeddings: Tensor) -> Tensor:
    """Return the index of each sample's nearest neighbour by cosine."""
    directions = F.normalize(embeddings.flatten(1).double(), dim=1)
    cosines = directions @ directions.T
    return cosines.fill_diagonal_(-math.inf).argmax(1)


_AGREEMENT: Final = "of the answers"
_REASON: Final = "int8 of a sound network changes 1 to 2% of the answers, all of them close calls"
KINDS: Final[dict[str, Kind]] = {
    "logits": Kind(
        "scores of classes before softmax, the largest is the answer",
        _AGREEMENT, 0.95, _REASON, _class_divergence, _measure_classes, has_classes=True,
    ),
    "probabilities": Kind(
        "probabilities of classes that exclude each other (softmax)",
        _AGREEMENT, 0.95, _REASON, _class_divergence, _measure_classes, has_classes=True,
    ),
    "independent": Kind(
        "probabilities of events that do not exclude each other (sigmoid), or their logits",
        "of the probabilities (1 − the root mean square difference of those above 0.05)",
        0.95, "thresholds are chosen to one or two decimals", _independent_divergence, _measure_independent,
    ),
    "class_map": Kind(
        "scores of classes for each pixel or position",
        "of the answers, pixel by pixel", 0.95, _REASON, _class_divergence, _measure_classes, has_classes=True,
    ),
    "classes": Kind(
        "integers, e.g. an arg-max computed inside the network",
        "of the integers", 0.95, _REASON, _no_divergence, _measure_classes,
    ),
    "values": Kind(
        "numbers, e.g. of a regression",
        "of the values (1 − the relative error of the worst channel, or the fraction within the tolerance)",
        0.90, "20 dB, a tenth of the values' spread, is where maps and waveforms begin to look and sound alike",
        _values_divergence, _measure_values,
    ),
    "embedding": Kind(
        "a vector whose direction counts",
        "of the nearest neighbours, and of the directions (1 − 5·(1 − cosine))",
        0.95, "neighbours are what embeddings are for; a cosine of 0.99 moves few of them", _embedding_divergence, _measure_embedding,
    ),
    "state": Kind(
        "a state that is given back to the network at the next call",
        "of the values (1 − the relative error of the worst channel)",
        0.90, "an error of a state returns at the next call", _values_divergence, _measure_values,
    ),
    "ignore": Kind("an output that nobody reads", "", None, "it is not judged", _no_divergence, _measure_values),
}  # fmt: skip
