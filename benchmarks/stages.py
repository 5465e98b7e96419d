"""Compare compression in several stages with compression in one: top-1 at the same MACs budget after the same number of epochs in all.

Each run prints a line of JSON. Each ratio then prints the mean top-1 of one stage and of several, and the difference with its standard
error over the seeds. Nothing is bounded: the figures tell which is better for a network.

    stages.py                                            ResNet-20 on Fashion-MNIST, three stages of 4 epochs against one of 12
    stages.py RECIPE --ratio 0.25 --ratio 0.15 --epochs 24 --seeds 5
"""

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Subset

from edgecompress import toolchains
from edgecompress.data.recipe import Recipe, load_recipe
from edgecompress.options import update_options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.records import CompressionPlan, FinetuneResult
from edgecompress.runs import open_run

QUICK_IMAGES = 500  # evaluation images with --quick


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=str(toolchains.example()))
    parser.add_argument("--ratio", type=float, action="append", help="MACs to keep [0.25]")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--weakening", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=12, help="epochs of all stages together, a multiple of their number [12]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="run three epochs of 400 samples, scored on 500 images")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(asked.recipe)
    if asked.quick and recipe.eval_data is not None:
        recipe = dataclasses.replace(recipe, eval_data=lambda data=recipe.eval_data: Subset(data(), range(QUICK_IMAGES)))
    few = {"epoch_samples": 400, "sensitivity_samples": 32} if asked.quick else {}
    total = asked.stages if asked.quick else asked.epochs
    for ratio in asked.ratio or [0.25]:
        found: dict[int, list[float]] = {1: [], asked.stages: []}
        for seed in range(asked.seeds):
            for n, kept in found.items():
                more = {"macs_ratio": ratio, "weakening": asked.weakening, "stages": n, "epochs": total // n, "seed": 100 * seed}
                kept.append(run(recipe, **more, **few))
        once, staged = found.values()
        differences = [100 * (b - a) for a, b in zip(once, staged, strict=True)]
        spread = f" ± {statistics.stdev(differences) / math.sqrt(len(differences)):.2f}" if len(differences) > 1 else ""
        means = f"{100 * statistics.mean(once):.2f}% once, {100 * statistics.mean(staged):.2f}% in {asked.stages} stages"
        print(f"ratio {ratio:g}: {means}, {statistics.mean(differences):+.2f}{spread} points", flush=True)


def run(recipe: Recipe, **options: float) -> float:
    """Compress and fine-tune; return the top-1 on the evaluation data."""
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run", name=recipe.name, recipe=recipe.source) as opened:
        opened.set_options(update_options(opened.record.options, options))
        context = open_context(opened, recipe)
        run_steps(context, "finetune")
        plan, result = context.read(CompressionPlan), context.read(FinetuneResult)
    row = {**options, "macs": plan.macs / plan.macs_before, "dense": result.dense_top1, "before": result.before_top1, "top1": result.top1}
    print(json.dumps(row), flush=True)
    if result.top1 is None:
        raise SystemExit(f"{recipe.source}: no labels to score on")
    return result.top1


if __name__ == "__main__":
    main()
