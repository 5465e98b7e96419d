"""Judge outputs on a device: the rank of each label, and whether the outputs are those of this machine."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgecompress.devices.layouts import to_model_layout
from edgecompress.network.parity import measure_parity
from edgecompress.records import Parity, TensorSpec
from edgecompress.targets import SCHEMES

Array = npt.NDArray[np.float32]

LEVELS: Final = 256  # an 8-bit output has no more values
STEP_SLACK: Final = 1.0005  # dequantized values are rounded to float32, which can make one step look longer


class Judgement(NamedTuple):
    """The comparison of a device's outputs with this machine's.

    Attributes:
        parity: None when the device gave NaN or infinity.
        step: The quantization step of the scores of an int8 artifact, or of its first output; None for others.
        beyond_step: How many values are more than one step away; None where there is no step.
        problem: Why the outputs count as different; "" when they do not.
    """

    parity: Parity | None
    step: float | None
    beyond_step: int | None
    problem: str


def rank_labels(scores: Array, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rank of each label among its scores `(n, classes)`, 0 for the highest.

    Of equal scores the lower class comes first, as in arg-max. A row with NaN or infinity ranks its label last.
    """
    own = np.take_along_axis(scores, labels[:, None], 1)  # (n, 1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    ranks: npt.NDArray[np.int64] = before.sum(1)
    ranks[~np.isfinite(scores).all(1)] = scores.shape[1]  # every comparison with NaN is false, which would rank the label first
    return ranks


def judge_outputs(
    outputs: Sequence[Array],
    expected: Sequence[Array],
    *,
    scheme: str,
    specs: Sequence[TensorSpec],
    scores: int | None,
    tolerance: float | None,
) -> Judgement:
    """Compare the outputs of a device with those of the same file on this machine.

    Args:
        outputs: One array `(n, …)` for each output of the artifact.
        expected: The same outputs computed here, all finite.
        scheme: The scheme of the artifact, which decides what difference is allowed where no `tolerance` is given.
        specs: The manifest's outputs.
        scores: The index of the output that holds the class scores; None where there is none.
        tolerance: The largest difference allowed over the output range.
    """
    values = sum(output.size for output in outputs)
    if broken := sum(int((~np.isfinite(output)).sum()) for output in outputs):
        return Judgement(None, None, None, f"{broken} of {values} outputs are NaN or infinite there, none here")
    parity = measure_parity(to_model_layout(outputs, ()), to_model_layout(expected, ()))
    step, beyond = None, None
    if SCHEMES[scheme].is_int8:
        steps = [quantization_step(wanted, spec) for wanted, spec in zip(expected, specs, strict=True)]
        step, beyond = steps[scores or 0], sum(map(_count_beyond_step, outputs, expected, steps))
    allowed = tolerance if tolerance is not None else SCHEMES[scheme].device_tolerance
    agreed = "" if parity.top1_agreement is None else f"top-1 agreement {parity.top1_agreement:.2%} on {parity.samples} samples, "
    said = f"{agreed}largest difference {parity.max_rel:.2g} of the range"
    problem = ""
    if allowed is not None and parity.max_rel > allowed:
        problem = f"departs from this machine: {said}, {allowed:g} allowed"
    elif allowed is None and beyond:
        problem = f"departs from this machine: {beyond} of {values} outputs over one quantization step off, {said}"
    return Judgement(parity, step, beyond, problem)


def _count_beyond_step(output: Array, expected: Array, step: float) -> int:
    """Return how many values are more than one quantization step apart."""
    return int((np.abs(output.astype(np.float64) - expected) > step * STEP_SLACK).sum())


def quantization_step(expected: Array, spec: TensorSpec) -> float:
    """Return the quantization step of an output: the manifest's, else the smallest distance of its values, else a 255th of their range."""
    if spec.scale:
        return spec.scale
    levels = np.unique(expected)
    if 1 < len(levels) <= LEVELS:
        return float(np.diff(levels.astype(np.float64)).min())
    return float(np.ptp(expected)) / (LEVELS - 1)
