"""Train the detector that this example ships: `python -m examples.detector.train` in the repository's root writes weights.safetensors.

AdamW with a one-cycle schedule on 8,000 scenes, mirrored at random; the scenes are drawn once and kept as bytes.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .detection import MeanAveragePrecision, loss
from .network import SIDE, Detector
from .scenes import Scenes, normalize

HERE = Path(__file__).parent
Batch = tuple[Tensor, dict[str, Tensor]]


def load(scenes: Scenes) -> Batch:
    """Return all images as bytes, `(n, 3, 96, 96)`, and their targets."""
    targets = [scenes[i][1] for i in range(len(scenes))]
    images = torch.stack([scenes.drawn[i][0] for i in range(len(scenes))])
    return images, {key: torch.stack([target[key] for target in targets]) for key in ("boxes", "classes")}


def choose(data: Batch, index: Tensor) -> Batch:
    images, targets = data
    return normalize(images[index]), {key: value[index] for key, value in targets.items()}


def mirror(batch: Batch, generator: torch.Generator) -> Batch:
    """Mirror each image across its vertical axis, and then across its horizontal one, half of the time."""
    x, targets = batch
    boxes = targets["boxes"]
    for axis, (low, high) in ((-1, (0, 2)), (-2, (1, 3))):
        flipped = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(axis), x)
        swapped = boxes.clone()
        swapped[..., low], swapped[..., high] = SIDE - boxes[..., high], SIDE - boxes[..., low]
        boxes = torch.where(flipped[:, None, None], swapped, boxes)
    return x, {**targets, "boxes": boxes}


@torch.inference_mode()
def evaluate(model: torch.nn.Module, data: Batch) -> float:
    """Return the mean average precision."""
    model.eval()
    metric = MeanAveragePrecision()
    for index in torch.arange(len(data[0])).split(100):
        x, targets = choose(data, index)
        metric.update(model(x), targets)
    return metric.compute()["mAP50"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "weights.safetensors")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    data, held_out = (
        load(Scenes(options.scenes, seed=10, name="training of the dense network")),
        load(Scenes(500, seed=2, name="evaluation")),
    )
    model = Detector().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    per_epoch = options.scenes // options.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=options.epochs * per_epoch, pct_start=0.15)
    for epoch in range(options.epochs):
        started, total = time.perf_counter(), 0.0
        model.train()
        for index in torch.randperm(options.scenes, generator=generator).split(options.batch_size)[:per_epoch]:
            x, targets = mirror(choose(data, index), generator)
            value = loss(model(x.contiguous(memory_format=torch.channels_last)), targets)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += float(value.detach())
        found = f"loss {total / per_epoch:.3f}, mAP50 {evaluate(model, held_out):.4f}"
        print(f"epoch {epoch + 1}/{options.epochs}: {found}, {time.perf_counter() - started:.0f} s", flush=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, options.output, {"mAP50": f"{evaluate(model, held_out):.4f}"})


if __name__ == "__main__":
    main()
