"""ResNet-18 and ResNet-34 for benchmarks: generated kernels with the spectra of trained ones."""

import math
from typing import cast

import torch
from kernels import trained_like
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        same = i == o and stride == 1
        self.shortcut = nn.Sequential() if same else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(cast(Tensor, y + self.shortcut(x)))


class ResNet(nn.Module):
    """A residual network with `depths` blocks in its stages: K. He et al. Deep residual learning … . CVPR 2016, table 1."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        shapes = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))[: len(depths)]
        stages = (
            (Block(i, o, stride), *(Block(o, o, 1) for _ in range(depth - 1))) for (i, o, stride), depth in zip(shapes, depths, strict=True)
        )
        self.blocks = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.fc = nn.Linear(shapes[-1][1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.blocks(self.stem(x)).mean((2, 3))))


def resnet18(stages: int = 4) -> nn.Module:
    """Return ResNet-18 or its first stages in eval mode, always the same."""
    return make_resnet((2, 2, 2, 2)[:stages])


def resnet34() -> nn.Module:
    """Return ResNet-34, of 22 million parameters, in eval mode, always the same."""
    return make_resnet((3, 4, 6, 3))


@torch.no_grad()
def make_resnet(depths: tuple[int, ...]) -> nn.Module:
    """Return a residual network in eval mode, always the same; activations keep their scale from layer to layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(depths)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(trained_like(*layer.weight.shape) * math.sqrt(2 / fan_in))
    return model.eval()
