"""Five small networks of different kinds, for benchmarks of what compression costs: each has outputs that are judged in another way."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WORDS, DIRECTIONS = 2048, 24, 64  # hashed n-grams, n-grams of a sentence, numbers of an embedding
SHAPES = 3  # circle, square, triangle; a pixel may also be background
MAP_SIDE, SCENE_SIDE, CELL = 32, 64, 8  # pixels
RATE, WINDOW, LOWEST_HZ, BINS, BIN_CENTS = 8000, 1024, 60.0, 120, 50.0  # of the pitch tracker: 5 octaves
POSE_SPREAD = (20.0, 2.5, 2.5, 0.15)  # standard deviations of angle in degrees, shifts in pixels, and scale


class Embedder(nn.Module):
    """Embed sentences: `(n, WORDS)` int64 hashed n-grams, 0 where the sentence is over → `(n, DIRECTIONS)` vectors of length one."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(WORDS, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, DIRECTIONS)

    def forward(self, words: Tensor) -> Tensor:
        known = (words > 0).float()[..., None]  # (n, WORDS, 1)
        y = self.encoder(self.words(words) + self.places)
        return F.normalize(self.head((y * known).sum(1) / known.sum(1)), dim=1)


def conv_bn(i: int, o: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class UNet(nn.Module):
    """Segment images: `(n, 3, h, w)` → `(n, 1 + SHAPES, h, w)` logits of each pixel."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Sequential(conv_bn(i, o), conv_bn(o, o)) for i, o in ((3, width), (width, 2 * width))])
        self.bottom = nn.Sequential(conv_bn(2 * width, 4 * width), conv_bn(4 * width, 4 * width))
        self.grow = nn.ModuleList([nn.ConvTranspose2d(2 * o, o, 2, 2) for o in (2 * width, width)])
        self.up = nn.ModuleList([conv_bn(2 * o, o) for o in (2 * width, width)])
        self.head = nn.Conv2d(width, 1 + SHAPES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block in self.down:
            skipped.append(x := block(x))
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat((grow(x), skipped.pop()), 1))
        return self.head(x)


class Detector(nn.Module):
    """Detect shapes, at most one a cell: `(n, 3, SCENE_SIDE, SCENE_SIDE)` → boxes and scores of the cells.

    Boxes are `(n, cells, 4)`: centre, width and height in pixels. Scores are `(n, cells, SHAPES)` probabilities, each by itself.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(conv_bn(i, o, stride=2) for i, o in ((3, width), (width, 2 * width), (2 * width, 4 * width))),
            *(conv_bn(4 * width, 4 * width) for _ in range(2)),
        )
        self.boxes, self.scores = nn.Conv2d(4 * width, 4, 1), nn.Conv2d(4 * width, SHAPES, 1)
        steps = torch.arange(SCENE_SIDE // CELL, dtype=torch.float32)
        corners = torch.stack((steps.repeat(len(steps)), steps.repeat_interleave(len(steps))), 1) * CELL  # (cells, 2)
        self.register_buffer("corners", corners)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        found = self.boxes(y).flatten(2).transpose(1, 2)  # (n, cells, 4)
        centres = self.corners + CELL * found[..., :2].sigmoid()
        return {
            "boxes": torch.cat((centres, 4 * CELL * found[..., 2:].sigmoid()), 2),
            "scores": self.scores(y).flatten(2).transpose(1, 2).sigmoid(),
        }


class PitchTracker(nn.Module):
    """Track the pitch of a tone: `(n, 1, WINDOW)` sound → `(n, BINS)` probabilities, each by itself.

    A bin has BIN_CENTS; the first begins at LOWEST_HZ.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        shapes = ((1, width, 32, 4), (width, 2 * width, 16, 4), (2 * width, 2 * width, 9, 2), (2 * width, 3 * width, 9, 2))
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(i, o, size, stride, size // 2, bias=False), nn.BatchNorm1d(o), nn.ReLU())
                for i, o, size, stride in shapes
            )
        )
        self.head = nn.Linear(self.body(torch.zeros(1, 1, WINDOW)).numel(), BINS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1)).sigmoid()


class PoseRegressor(nn.Module):
    """Measure how a picture was moved: `(n, 1, 28, 28)` → `(n, 4)` angle in degrees, shift right and down in pixels, and scale."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(1, width),
            conv_bn(width, 2 * width, stride=2),
            conv_bn(2 * width, 4 * width, stride=2),
            conv_bn(4 * width, 4 * width),
            nn.Flatten(),
            nn.Linear(4 * width * 49, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 4)
        self.register_buffer("spread", torch.tensor(POSE_SPREAD))
        self.register_buffer("middle", torch.tensor((0.0, 0.0, 0.0, 1.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.spread + self.middle
