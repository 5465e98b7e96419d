"""The largest saving whose measured loss of accuracy stays within a bound, before anything is trained."""

from typing import Final

import msgspec
from torch import Tensor, nn

from edgecompress import batches
from edgecompress.batches import Batch
from edgecompress.errors import ConfigError
from edgecompress.planning.trials import BISECTIONS, At, Trial, drops, largest
from edgecompress.progress import Track
from edgecompress.records import CompressionPlan

FEWEST: Final = 100  # judged inputs; on fewer a point is less than one answer


def within(
    model: nn.Module,
    at: At,
    max_drop: float,
    *,
    inputs: Batch,
    judged: tuple[Batch, Tensor | None] | None,
    data_aware: bool,
    track: Track,
) -> CompressionPlan:
    """Return the plan that spends as much of the budget as costs `max_drop` points of top-1 at the most, after BatchNorm re-estimation.

    Args:
        at: The plan for a share of the budget.
        inputs: BatchNorm is re-estimated on these; empty where there are none.
        judged: Inputs and labels that accuracy is measured on; without labels it is agreement with the dense network.

    Raises:
        ConfigError: Nothing, or too little, to measure a drop on.
    """
    n = batches.size(judged[0]) if judged else 0
    if judged is None or not inputs or n < FEWEST:
        raise ConfigError(f"max drop {max_drop:g}: {n} inputs to measure it on, {FEWEST} are needed; add data to the recipe or give --data")
    dropped = drops(Trial(model, inputs, *judged, data_aware))
    made = at(1.0)
    first = dropped(made)
    best = made if first <= max_drop else largest(at, lambda plan: dropped(plan) <= max_drop, track=track)
    found = first if best is made else dropped(best) if best.layers else 0.0
    measure = "top-1" if judged[1] is not None else "agreement with the dense network"
    note = f"before fine-tuning it loses {found:.2f} points of {measure} on {n} inputs; {max_drop:g} are allowed"
    if not best.layers:
        least = f"the first {0.5**BISECTIONS:.1%} of what could be saved"
        note = f"nothing is worth decomposing: {least} costs more than {max_drop:g} points of {measure} on {n} inputs; ship it quantized"
    return msgspec.structs.replace(best, notes=(*best.notes, note))
