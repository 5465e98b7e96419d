"""Small networks whose outputs hold ranges that integers cannot hold together, in the forms that detectors have, and some that do not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgecompress.network.batches import Batch
from edgecompress.network.parity import sqnr_db

SIDE = 16
CELLS = 16  # positions of the map that heads read
BOXES, CLASSES = 4, 3
PIXELS = 640.0
BINS = 8


class Detector(nn.Module):
    """Boxes in pixels and class probabilities from two heads: `(n, 3, 16, 16)` → what `join` makes of `(n, 4, 16)` and `(n, 3, 16)`."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.join = join
        self.stem, self.middle = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.box, self.score, self.both = nn.Conv2d(12, BOXES, 1), nn.Conv2d(12, CLASSES, 1), nn.Conv2d(12, BOXES + CLASSES, 1)
        self.fc, self.bins = nn.Linear(12, BOXES + CLASSES), nn.Conv2d(12, BOXES * BINS, 1)
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        self.register_buffer("centres", torch.stack([columns, rows, columns, rows]).flatten(1)[None] * 160 + 80)
        self.register_buffer("sizes", torch.tensor([300.0] * BOXES + [1.0] * CLASSES)[:, None])
        with torch.no_grad():
            for head in (self.box, self.score, self.both):
                head.weight.mul_(6)
            self.fc.weight[:BOXES] *= 400
            self.fc.bias[:BOXES] *= 400

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = torch.relu(self.middle(torch.relu(self.stem(x))))  # (n, 12, 4, 4)
        boxes = (self.centres + 40 * self.box(x).flatten(2)).clamp(0.0, PIXELS)
        scores = self.score(x).flatten(2).sigmoid()
        return JOINS[self.join](self, x, boxes, scores)


def _written(net: Detector, x: Tensor) -> Tensor:
    found = net.both(x).flatten(2)
    found[:, :BOXES] = found[:, :BOXES] * 300
    return found


def _filled(boxes: Tensor, scores: Tensor) -> Tensor:
    found = torch.zeros(len(boxes), BOXES + CLASSES, CELLS)
    found[:, :BOXES], found[:, BOXES:] = boxes, scores
    return found


def _split(net: Detector, x: Tensor) -> Tensor:
    """Sizes as an exponential of anchors, class scores by a sigmoid, from one head."""
    sizes, scores = net.both(x).flatten(2).split((BOXES, CLASSES), 1)
    return torch.cat([sizes.clamp(-3, 1).exp() * net.centres, scores.sigmoid()], 1)


def _expected_distances(net: Detector, x: Tensor, scores: Tensor) -> Tensor:
    """Each side of a box as the expectation of a distribution over distances, by a convolution with fixed weights, as YOLOv8 does."""
    bins = net.bins(x).view(len(x), BOXES, BINS, CELLS).transpose(1, 2).softmax(1)  # (n, bins, 4, 16)
    distances = nn.functional.conv2d(bins, torch.arange(float(BINS)).view(1, BINS, 1, 1)).squeeze(1)
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None]
    return torch.cat([net.centres + signs * distances * 40, scores], 1)


def _levels(net: Detector, x: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
    """Two maps, each of which joins boxes and scores, one behind the other."""
    coarse = nn.functional.avg_pool2d(x, 2)
    second = torch.cat([160 + 80 * net.box(coarse).flatten(2), net.score(coarse).flatten(2).sigmoid()], 1)
    return torch.cat([torch.cat([boxes, scores], 1), second], 2)


def _parted(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    joined = torch.cat([boxes, scores], 1)
    return joined[:, :BOXES], joined[:, BOXES:]


# What a network returns of itself, its map `(n, 12, 4, 4)`, boxes `(n, 4, 16)` and scores `(n, 3, 16)`.
JOINS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "cat": lambda net, x, boxes, scores: torch.cat([boxes, scores], 1),
    "scores-first": lambda net, x, boxes, scores: torch.cat([scores, boxes], 1),
    "last-axis": lambda net, x, boxes, scores: torch.cat([boxes.transpose(1, 2), scores.transpose(1, 2)], -1),
    "stack": lambda net, x, boxes, scores: torch.stack([boxes[:, 0], boxes[:, 1], scores[:, 0], scores[:, 1]], 1),
    "scale": lambda net, x, boxes, scores: net.both(x).flatten(2) * net.sizes,
    "offset": lambda net, x, boxes, scores: net.both(x).flatten(2) + torch.cat([net.centres, torch.zeros(1, CLASSES, CELLS)], 1),
    "written": lambda net, x, boxes, scores: _written(net, x),
    "linear": lambda net, x, boxes, scores: net.fc(x.mean((2, 3))),
    "clipped": lambda net, x, boxes, scores: net.fc(x.mean((2, 3))).clamp(-1000.0, 1000.0),
    "constant": lambda net, x, boxes, scores: torch.cat([net.centres.expand(len(x), -1, -1), net.score(x).flatten(2)], 1),
    "shared": lambda net, x, boxes, scores: (torch.cat([boxes, scores], 1), scores.amax(2)),
    "parted": lambda net, x, boxes, scores: _parted(boxes, scores),
    "labelled": lambda net, x, boxes, scores: torch.cat([boxes, scores.amax(1, True), scores.argmax(1, True).float()], 1),
    "map": lambda net, x, boxes, scores: torch.cat([boxes, scores], 1).view(-1, BOXES + CLASSES, 4, 4),
    "maps": lambda net, x, boxes, scores: torch.cat([320 + 100 * net.box(x), net.score(x).sigmoid()], 1),
    "levels": lambda net, x, boxes, scores: _levels(net, x, boxes, scores),
    "distances": lambda net, x, boxes, scores: _expected_distances(net, x, scores),
    "split": lambda net, x, boxes, scores: _split(net, x),
    "filled": lambda net, x, boxes, scores: _filled(boxes, scores),
    "alike": lambda net, x, boxes, scores: torch.cat([boxes / PIXELS, scores], 1),
    "apart": lambda net, x, boxes, scores: (boxes, scores),
}
ALIKE = ("alike", "apart")
MIXED = tuple(join for join in JOINS if join not in ALIKE)


def detector_and_data(join: str, samples: int = 48) -> tuple[nn.Module, Tensor]:
    """Return the network and inputs, `(samples, 3, 16, 16)`, the same ones each time."""
    torch.manual_seed(1)
    return Detector(join).eval(), torch.rand(samples, 3, SIDE, SIDE) * 2 - 1


def channel_sqnr_db(outputs: Batch, references: Batch, join: str) -> list[float]:
    """Return the SQNR of each channel of each output."""
    axis = 2 if join == "last-axis" else 1
    pairs = [(y, wanted) for y, wanted in zip(outputs, references, strict=True)]
    return [sqnr_db(a, b) for y, wanted in pairs for a, b in zip(y.unbind(axis), wanted.unbind(axis), strict=True)]
