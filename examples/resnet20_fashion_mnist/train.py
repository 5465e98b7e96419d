"""Train the dense ResNet-20 that this example ships: `python train.py` writes weights.safetensors.

SGD with a one-cycle schedule, flips and shifts, label smoothing; bfloat16 where the processor has it. Uses the full 60,000 images where
Debian's package `dataset-fashion-mnist` is installed, else the 10,000 of the repository (about two points worse).
"""

import argparse
import time
from pathlib import Path

import torch
from network import ResNet20
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from edgecompress.data import idx

HERE = Path(__file__).parent
FULL_SET = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, pixels in [0, 1]


def load(split: str) -> tuple[Tensor, Tensor]:
    images, labels = idx.read_split(FULL_SET if FULL_SET.is_dir() else HERE / "data", split)
    x = (torch.from_numpy(images.copy()).float() / 255 - MEAN) / STD
    return x[:, None], torch.from_numpy(labels.copy()).long()  # (n, 1, 28, 28), (n,)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every second image and shift each by up to two pixels."""
    n = len(x)
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    x = F.pad(x, (2, 2, 2, 2), value=-MEAN / STD)  # (n, 1, 32, 32)
    windows = x.unfold(2, 28, 1).unfold(3, 28, 1)  # (n, 1, 5, 5, 28, 28)
    dy, dx = torch.randint(5, (2, n), generator=generator)
    return windows[torch.arange(n), :, dy, dx]  # (n, 1, 28, 28)


@torch.inference_mode()
def top1(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True)) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "weights.safetensors")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    x, y = load("train")
    x_test, y_test = load("eval")
    model = ResNet20().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = options.epochs * (len(x) // options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps, pct_start=0.25)
    for epoch in range(options.epochs):
        started = time.perf_counter()
        model.train()
        for batch in torch.randperm(len(x), generator=generator).split(options.batch_size)[: steps // options.epochs]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(augment(x[batch], generator).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{options.epochs}: top-1 {top1(model, x_test, y_test):.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, options.output, {"top1": f"{top1(model, x_test, y_test):.4f}"})


if __name__ == "__main__":
    main()
