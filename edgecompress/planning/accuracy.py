"""The largest saving whose measured loss of accuracy stays within a bound, before anything is trained."""

from typing import Final

import msgspec
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.planning.trials import At, Trial, drops, largest
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
    tried: list[tuple[CompressionPlan, float]] = []

    def survives(plan: CompressionPlan) -> bool:
        tried.append((plan, dropped(plan)))
        return tried[-1][1] <= max_drop

    made = at(1.0)
    best = made if survives(made) else largest(at, survives, track=track)
    failed = [(plan, lost) for plan, lost in tried if lost > max_drop]
    measure = f"points of {'top-1' if judged[1] is not None else 'agreement with the dense network'} on {n} inputs"
    if failed and not best.layers:
        least, lost = failed[-1]
        saved = f"saving {1 - least.macs / least.macs_before:.1%} of the MACs costs {lost:.2f} {measure}"
        note = f"nothing is worth decomposing: {saved}, {max_drop:g} are allowed; ship it quantized"
    else:
        known = [lost for plan, lost in tried if plan is best]  # none where layers were fixed by hand and nothing more survives
        lost = known[0] if known else dropped(best)
        note = f"before fine-tuning it loses {lost:.2f} {measure}; {max_drop:g} are allowed"
    return msgspec.structs.replace(best, notes=(*best.notes, note))
