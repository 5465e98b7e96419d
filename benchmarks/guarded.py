"""Measure what the planner saves without training data: EfficientNet-Lite0, with BatchNorm re-estimated and nothing trained.

The plan saves as many MACs as it can while its agreement with the dense network on calibration crops drops by at most 10 points; factors
are fitted to the inputs of the layers. The plan is judged on crops of the evaluation photographs, of which the planner has seen no pixel.
The peer has uniform ranks at the same MACs, or at 0.95 of the MACs where the plan keeps them all. --quick uses fewer images, of 96×96.

Rows: agreement with the dense network of the plan (≥ 0.9), and of uniform ranks over it (at most 1).
"""

import sys

import torch
from rows import Rows, parse
from torch import nn
from torch.nn import functional as F

from edgecompress import toolchains
from edgecompress.data import fetch_samples
from edgecompress.data.recipe import Data, load_recipe
from edgecompress.factorizations.decompose import decompose
from edgecompress.network import batches
from edgecompress.network.analyze import analyze
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import record_statistics, reestimate_batchnorm
from edgecompress.network.parity import top1_agreement
from edgecompress.network.surgery import forward
from edgecompress.planning.plan import plan
from edgecompress.records import Budget, CompressionPlan

NAME = "efficientnet_lite0"
MAX_DROP = 10.0  # points of agreement
UNIFORM_MACS_RATIO = 0.95  # uniform ranks get this budget where the plan keeps all MACs, so that the peer compresses at all


def measure_agreement(model: nn.Module, made: CompressionPlan, inputs: Batch, held_out: Batch) -> float:
    """Return how often the planned network answers as the dense one, both on held-out inputs."""
    network = decompose(model, made, inputs=inputs)[0].eval()
    if made.layers:
        reestimate_batchnorm(network, batches.split_evenly(inputs), since=record_statistics(model, batches.split_evenly(inputs)))
    same = top1_agreement(forward(network, held_out), forward(model, held_out))
    assert same is not None
    return same


def main() -> None:
    options = parse(__doc__ or "")
    quick = options.quick
    recipe = load_recipe(str(toolchains.REPOSITORY / "examples" / NAME))
    assert recipe.calibration_data
    assert recipe.eval_data
    model, side = recipe.model(), 96 if quick else 224

    def images(data: Data, n: int) -> Batch:
        x = fetch_samples(data(), n, seed=0, example=recipe.example_inputs, labelled=False)[0][0]
        return (F.interpolate(x, (side, side), mode="bilinear", antialias=True) if quick else x,)

    seen = images(recipe.calibration_data, 136 if quick else 374)
    half = batches.count_samples(seen) // (4 if quick else 2)
    inputs, judged = batches.take_samples(seen, slice(half)), batches.take_samples(seen, slice(half, None))
    held_out = images(recipe.eval_data, 80 if quick else 238)
    stats = analyze(model, (torch.zeros(1, 3, side, side),), name=recipe.name, measure=False)
    made = plan(model, stats, budget=Budget(max_drop=MAX_DROP), inputs=inputs, judged=(judged, None), data_aware=True)
    print(made.notes[-1], file=sys.stderr)
    kept = made.macs / made.macs_before
    uniform = plan(model, stats, macs_ratio=kept if made.layers else UNIFORM_MACS_RATIO, allocator="uniform")
    ours, theirs = measure_agreement(model, made, inputs, held_out), measure_agreement(model, uniform, inputs, held_out)
    rows = Rows(options.write)
    beside = {"macs_ratio": kept, "layers": float(len(made.layers))}
    rows.add(f"{recipe.name}, nothing trained: agreement of the plan", ours=ours, peer=None, bound=1 - MAX_DROP / 100, sense=">=", **beside)
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
