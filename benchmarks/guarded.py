"""What the planner saves where nothing will repair a network: EfficientNet-Lite0, BatchNorm re-estimated, nothing trained.

The plan is the one that saves most MACs and, on calibration crops, answers at most 10 points less often as the dense network does; factors
are fitted to what layers read. It is judged on crops of the evaluation photographs, of which the planner has seen no pixel. Beside it:
uniform ranks for the MACs it keeps, or for 0.95 of them where it keeps them all. --quick has images of 96×96 and fewer of them.

Rows: agreement with the dense network of the plan (≥ 0.9), and of uniform ranks over it (at most 1).
"""

import sys

import torch
from rows import Rows, parse
from torch import nn
from torch.nn import functional as F

from edgecompress import toolchains
from edgecompress.data import fetch
from edgecompress.data.recipe import Data, load
from edgecompress.factorizations.decompose import decompose
from edgecompress.network import batches
from edgecompress.network.analyze import analyze
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import before, reestimate
from edgecompress.network.parity import agreement
from edgecompress.network.surgery import forward
from edgecompress.planning.plan import plan
from edgecompress.records import Budget, CompressionPlan

NAME = "efficientnet_lite0"
DROP = 10.0  # points of agreement
LEAST = 0.95  # of the MACs, kept by uniform ranks where the plan keeps all


def agreed(model: nn.Module, made: CompressionPlan, inputs: Batch, held_out: Batch) -> float:
    """Return how often the planned network answers as the dense one, both on held-out inputs."""
    network = decompose(model, made, inputs=inputs)[0].eval()
    if made.layers:
        reestimate(network, batches.evenly(inputs), since=before(model, batches.evenly(inputs)))
    same = agreement(forward(network, held_out), forward(model, held_out))
    assert same is not None
    return same


def main() -> None:
    quick = parse(__doc__ or "").quick
    recipe = load(str(toolchains.REPOSITORY / "examples" / NAME))
    assert recipe.calibration_data
    assert recipe.eval_data
    model, side = recipe.model(), 96 if quick else 224

    def images(data: Data, n: int) -> Batch:
        x = fetch(data(), n, seed=0, example=recipe.example_inputs, labelled=False)[0][0]
        return (F.interpolate(x, (side, side), mode="bilinear", antialias=True) if quick else x,)

    seen = images(recipe.calibration_data, 136 if quick else 374)
    half = batches.size(seen) // (4 if quick else 2)
    inputs, judged = batches.take(seen, slice(half)), batches.take(seen, slice(half, None))
    held_out = images(recipe.eval_data, 80 if quick else 238)
    stats = analyze(model, (torch.zeros(1, 3, side, side),), name=recipe.name, measure=False)
    made = plan(model, stats, budget=Budget(max_drop=DROP), inputs=inputs, judged=(judged, None), data_aware=True)
    print(made.notes[-1], file=sys.stderr)
    kept = made.macs / made.macs_before
    uniform = plan(model, stats, macs_ratio=kept if made.layers else LEAST, allocator="uniform")
    ours, theirs = agreed(model, made, inputs, held_out), agreed(model, uniform, inputs, held_out)
    rows = Rows()
    beside = {"macs_ratio": kept, "layers": float(len(made.layers))}
    rows.add(f"{recipe.name}, nothing trained: agreement of the plan", ours=ours, peer=None, bound=1 - DROP / 100, sense=">=", **beside)
    rows.add(
        f"{recipe.name}, nothing trained: agreement of uniform ranks over the plan's",
        ours=theirs,
        peer=ours,
        bound=1.0,
        macs_ratio=uniform.macs / uniform.macs_before,
        layers=float(len(uniform.layers)),
    )
    rows.end()


if __name__ == "__main__":
    main()
