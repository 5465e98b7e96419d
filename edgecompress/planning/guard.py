"""When nothing will repair the network afterwards: spend only as much of a budget as its predictions survive."""

from typing import Final

import msgspec
from torch import nn

from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.planning.trials import At, Trial, agrees, largest
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan

FEWEST: Final = 4  # BatchNorm needs two to re-estimate on


def guarded(
    model: nn.Module,
    made: CompressionPlan,
    at: At,
    *,
    asked: str,
    inputs: Batch,
    min_agreement: float,
    data_aware: bool,
    track: Track,
) -> CompressionPlan:
    """Return `made` if the network survives it, else the largest saving that it survives, else a plan that decomposes nothing.

    Args:
        asked: The budget, for the note.
        inputs: Empty where there are none. The first half re-estimates BatchNorm, the second measures agreement with the dense model.
        data_aware: Fit to what the layers read from the first half, where a method can.
    """
    samples = batches.size(inputs) if inputs else 0
    if samples < FEWEST:
        note = f"{asked} was refused: {samples} inputs cannot show whether the network survives it"
        return msgspec.structs.replace(at(0.0), notes=(*made.notes, note))
    half = samples // 2
    recovery, held_out = batches.take(inputs, slice(half)), batches.take(inputs, slice(half, None))
    survived = agrees(Trial(model, recovery, held_out, None, data_aware))
    first = survived(made)
    if first >= min_agreement:
        return made
    best = largest(at, lambda plan: survived(plan) >= min_agreement, track=track)
    reached = survived(best) if best.layers else 1.0  # layers that were fixed by hand stay, whatever they cost
    spent = f"ratio {best.macs / best.macs_before:.2f} keeps {reached:.0%} and was taken" if best.layers else "nothing was decomposed"
    note = (
        f"{asked} was refused: without fine-tuning it leaves {first:.0%} top-1 agreement with the dense model on "
        f"{samples - half} held-out inputs, {min_agreement:.0%} is asked for; {spent}"
    )
    return msgspec.structs.replace(best, notes=(*best.notes, note))
