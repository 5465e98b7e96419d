"""Single layers of every kind that latency tables know, and their forms."""

import torch
from torch import nn

from edgecompress.network.analyze import analyze
from edgecompress.planning.latency_tables.layer_forms import layer_form

LAYERS = {
    "plain": (nn.Conv2d(8, 12, 3, padding=1), (8, 10, 14)),
    "strided": (nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), (8, 10, 14)),
    "strided-odd": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (8, 9, 13)),
    "large": (nn.Conv2d(3, 8, 7, stride=2, padding=3), (3, 32, 32)),
    "unpadded": (nn.Conv2d(8, 12, 3), (8, 10, 14)),
    "dilated": (nn.Conv2d(8, 12, 3, padding=2, dilation=2), (8, 10, 14)),
    "pointwise": (nn.Conv2d(8, 12, 1), (8, 10, 14)),
    "depthwise": (nn.Conv2d(8, 16, 3, padding=1, groups=8), (8, 10, 14)),
    "linear": (nn.Linear(20, 12), (20,)),
    "sequence": (nn.Linear(20, 12), (5, 20)),
    "audio": (nn.Conv1d(4, 8, 3, padding=1), (4, 32)),
}


def stats_of(layer, shape):
    return analyze(nn.Sequential(layer), (torch.zeros(1, *shape),), measure=False).layers[0]


def form_of_layer(name, method="dense", rank=()):
    layer, shape = LAYERS[name]
    return layer_form(stats_of(layer, shape), layer, method, rank)
