"""A small one-stage detector for 96×96 colour images, without anchor boxes, decoded inside the network.

Each position of two maps, of stride 8 and 16, gives the distances from its centre to the four sides of a box and a score for each class
[TIAN19]. The map of stride 16 is also added to the finer one [LIN17].

References:
    [TIAN19] Z. Tian, C. Shen, H. Chen, T. He. FCOS: fully convolutional one-stage object detection. ICCV 2019.
    [LIN17] T.-Y. Lin et al. Feature pyramid networks for object detection. CVPR 2017.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 96
STRIDES = (8, 16)
REACH = 4.0  # strides from the centre of a position to the side of its box, at most
CLASSES = ("disc", "square", "triangle")
PRIOR = 0.02  # score of a position before training: few of them hold an object


def positions() -> tuple[Tensor, Tensor]:
    """Return the centres `(positions, 2)`, x before y, and strides `(positions,)` of the network's positions, in its order."""
    centres, strides = [], []
    for stride in STRIDES:
        steps = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], 1))
        strides.append(torch.full((len(x.flatten()),), float(stride)))
    return torch.cat(centres), torch.cat(strides)


class Detector(nn.Module):
    """`(n, 3, 96, 96)` → `(n, 7, 180)`: left, top, right and bottom in pixels, then a score from 0 to 1 for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 16, 2), _block(16, 24, 2), _block(24, 40, 2), _block(40, 40, 1))
        self.deep = _block(40, 56, 2)
        self.lateral = nn.Conv2d(56, 40, 1)
        self.fine = _block(40, 40, 1)
        self.boxes = nn.ModuleList([nn.Conv2d(40, 4, 1), nn.Conv2d(56, 4, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(40, len(CLASSES), 1), nn.Conv2d(56, len(CLASSES), 1)])
        for head in self.scores:
            nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)))
        centres, strides = positions()
        self.register_buffer("corners", torch.cat([centres, centres], 1).T[None].contiguous(), persistent=False)  # (1, 4, positions)
        signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        self.register_buffer("reaches", (REACH * signs[:, None] * strides)[None].contiguous(), persistent=False)  # (1, 4, positions)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.stem(x)  # (n, 40, 12, 12)
        deep = self.deep(shallow)  # (n, 56, 6, 6)
        maps = (self.fine(shallow + F.interpolate(self.lateral(deep), scale_factor=2.0)), deep)
        distances = torch.cat([head(m).flatten(2) for head, m in zip(self.boxes, maps, strict=True)], 2)  # (n, 4, positions)
        scores = torch.cat([head(m).flatten(2) for head, m in zip(self.scores, maps, strict=True)], 2)  # (n, classes, positions)
        return torch.cat([self.corners + distances.sigmoid() * self.reaches, scores.sigmoid()], 1)


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())
