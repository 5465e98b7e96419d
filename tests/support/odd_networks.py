"""Networks with other inputs and outputs than one image and its class scores, and data that they learn in a second."""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from edgecompress.data import Samples

SAMPLES, HELD_OUT = 600, 100


class TwoInTwoOut(nn.Module):
    """An image and a vector in; class scores, and one number of a far smaller range, out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.side = nn.Linear(4, 32)
        self.head = nn.Linear(32, 10)
        self.number = nn.Linear(32, 1)

    def forward(self, image, vector):
        x = F.relu(self.body(F.relu(self.stem(image))))
        x = F.relu(F.max_pool2d(x, 4).flatten(1) + self.side(vector))
        return self.head(x), self.number(x)


class Tokens(nn.Module):
    """Indices through an embedding and one layer of attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.wide = nn.Linear(32, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, tokens):
        x = self.embed(tokens)  # (n, 12, 32)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.relu(self.wide(x)).mean(1))


class Audio(nn.Module):
    """One-dimensional convolutions over a waveform."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 16, 9, stride=4, padding=4)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 32, 9, stride=4, padding=4)
        self.head = nn.Linear(32, 4)

    def forward(self, wave):
        x = F.relu(self.norm(self.first(wave)))
        return self.head(F.relu(self.second(x)).mean(2))


class UNet(nn.Module):
    """An image in and an image out, by a transposed convolution and a skip connection."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 16, 3, padding=1)
        self.low = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.last = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x):
        high = F.relu(self.down(x))
        return self.last(torch.cat([high, F.relu(self.up(F.relu(self.low(high))))], 1))


@dataclass(frozen=True)
class Case:
    """A network, its loss against what its data are labelled with, and its data, inputs first."""

    network: type[nn.Module]
    loss: object
    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor


class Pairs(Samples):
    """An image and the image that is wanted of it."""

    def __getitem__(self, index):
        return self.inputs[index], self.wanted[index]


def _digits():
    raw = load_digits()
    return torch.tensor(raw.images[: SAMPLES + HELD_OUT], dtype=torch.float32)[:, None] / 16, torch.tensor(raw.target[: SAMPLES + HELD_OUT])


def _two(outputs, labels):
    return F.cross_entropy(outputs[0], labels) + F.mse_loss(outputs[1][:, 0], labels / 100)


@cache
def case(name):
    n = SAMPLES + HELD_OUT
    draw = torch.Generator().manual_seed(0)
    images, digits = _digits()
    if name == "two":
        return Case(TwoInTwoOut, _two, (images, F.avg_pool2d(images, 4).flatten(1)), digits)
    if name == "unet":
        return Case(UNet, F.mse_loss, (images + 0.2 * torch.randn(images.shape, generator=draw),), images)
    classes = torch.randint(4, (n,), generator=draw)
    if name == "tokens":  # a quarter of the vocabulary is more likely in each class
        common = classes[:, None] * 5 + torch.randint(5, (n, 12), generator=draw)
        any_of_all = torch.randint(20, (n, 12), generator=draw)
        return Case(Tokens, F.cross_entropy, (torch.where(torch.rand(n, 12, generator=draw) < 0.7, common, any_of_all),), classes)
    turns = torch.rand(n, 1, 1, generator=draw) + (2 + 4 * classes[:, None, None]) * torch.linspace(0, 1, 256)
    return Case(Audio, F.cross_entropy, ((2 * torch.pi * turns).sin() + 0.1 * torch.randn(n, 1, 256, generator=draw),), classes)


def sets(name):
    """(train, eval) data; inputs of several are a tuple."""
    made = case(name)
    return tuple(_samples(made, part) for part in (slice(SAMPLES), slice(SAMPLES, None)))


def _samples(made, part):
    inputs = tuple(x[part] for x in made.inputs)
    source = f"{len(inputs[0])} of {made.network.__name__}"
    if made.network is UNet:
        pairs = Pairs(inputs[0], None, source=source)
        pairs.wanted = made.labels[part]
        return pairs
    return Samples(inputs if len(inputs) > 1 else inputs[0], made.labels[part], source=source)


def example(name):
    return tuple(x[:1] for x in case(name).inputs)


@cache
def trained(name):
    made = case(name)
    torch.manual_seed(0)
    net = made.network()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(15):
        for picked in torch.randperm(SAMPLES).split(50):
            optimizer.zero_grad()
            made.loss(net(*(x[picked] for x in made.inputs)), made.labels[picked]).backward()
            optimizer.step()
    return net.eval()
