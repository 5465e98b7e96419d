"""Small networks and real data that several test modules share."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from edgecompress.data import Samples


class Net(nn.Module):
    """Two convolutions with BatchNorm, a pooled head: about 98% of the digits after a second of training."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.mix = nn.Conv2d(2 * width, 2 * width, 1)
        self.head = nn.Linear(2 * width * 4, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(self.bn2(self.body(x)))
        return self.head(F.max_pool2d(F.relu(self.mix(x)), 2).flatten(1))


@cache
def digits():
    """scikit-learn's 1,797 real 8×8 digits as (train, eval) Samples."""
    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(raw.target)
    return Samples(x[:1400], y[:1400], source="digits, train"), Samples(x[1400:], y[1400:], source="digits, eval")


def trained(model, epochs=4, seed=0):
    """Train on the digits from a seeded start, whatever the weights were; returns the model in eval mode."""
    train, _ = digits()
    torch.manual_seed(seed)
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for picked in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(train.inputs[picked]), train.labels[picked]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


class Uneven(nn.Module):
    """A bottleneck as of MobileNetV2, ReLU6 and depthwise around it, whose channels differ in size by 2^`octaves`.

    What comes after undoes the factors, so that the float network computes as if there were none; one scale for all channels loses the
    small ones.
    """

    def __init__(self, width=16, octaves=9):
        super().__init__()
        self.octaves = octaves
        self.stem, self.dw1 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project, self.expand = nn.Conv2d(width, width, 1), nn.Conv2d(width, 2 * width, 1)
        self.dw2, self.head = nn.Conv2d(2 * width, 2 * width, 3, stride=2, groups=2 * width), nn.Linear(2 * width * 9, 10)
        self.relu6 = nn.ReLU6()

    def forward(self, x):
        x = self.relu6(self.dw1(self.relu6(self.stem(x))))
        x = self.relu6(self.dw2(self.relu6(self.expand(self.project(x)))))
        return self.head(x.flatten(1))

    @torch.no_grad()
    def spread(self):
        """Set the channels apart, in place; outputs stay."""
        factors = 2.0 ** torch.linspace(0, self.octaves, len(self.project.weight))
        self.project.weight *= factors[:, None, None, None]
        self.project.bias *= factors
        self.expand.weight /= factors[None, :, None, None]
        return self
