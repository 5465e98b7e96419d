"""A tiny trained network with two outputs of every kind, and inputs on which its answers are clear."""

import copy
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("logits", "probabilities", "independent", "class_map", "classes", "values", "embedding", "state")
# Of these the exported graph says nothing; it shows the other kinds.
DECLARED = {f"{kind}_{which}": kind for kind in ("logits", "class_map", "state") for which in "ab"}
COLOURS = 3
STEPS = 80


class ManyOutputs(nn.Module):
    """Images `(n, 3, 12, 12)` of 3 × 3 coloured cells → a dict with two outputs of each kind, read from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.logits, self.probabilities = (nn.ModuleList(nn.Linear(144, 6) for _ in "ab") for _ in range(2))
        self.events = nn.ModuleList(nn.Linear(144, 4) for _ in "ab")
        self.maps, self.classes = (nn.ModuleList(nn.Conv2d(16, COLOURS, 1) for _ in "ab") for _ in range(2))
        self.boxes, self.confidences = nn.ModuleList(nn.Conv2d(16, 4, 1) for _ in "ab"), nn.ModuleList(nn.Conv2d(16, 2, 1) for _ in "ab")
        self.directions, self.states = nn.ModuleList(nn.Linear(144, 8) for _ in "ab"), nn.ModuleList(nn.Linear(144, 6) for _ in "ab")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        positions = self.body(x)  # (n, 16, 6, 6)
        cells = F.avg_pool2d(positions, 2)  # (n, 16, 3, 3)
        flat = cells.flatten(1)
        found = {}
        for i, which in enumerate("ab"):
            boxes = (self.boxes[i](cells).flatten(2) * 160 + 320).clamp(0, 640)
            found |= {
                f"logits_{which}": self.logits[i](flat),
                f"probabilities_{which}": self.probabilities[i](flat).softmax(1),
                f"independent_{which}": self.events[i](flat).sigmoid(),
                f"class_map_{which}": self.maps[i](positions),
                f"classes_{which}": self.classes[i](positions).argmax(1),
                f"values_{which}": torch.cat([boxes, self.confidences[i](cells).flatten(2).sigmoid()], 1),  # 0 … 640 beside 0 … 1
                f"embedding_{which}": F.normalize(self.directions[i](flat), dim=1),
                f"state_{which}": self.states[i](flat).tanh(),
            }
        return found


def draw_scenes(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images, and the colour of each of their cells, `(n, 3, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(COLOURS, (samples, 3, 3), generator=generator)
    images = (F.one_hot(colours, COLOURS).movedim(-1, 1) * 2.0 - 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    brightness = 0.8 + 0.4 * torch.rand(samples, 1, 1, 1, generator=generator)
    return images * brightness + 0.05 * torch.randn(images.shape, generator=generator), colours


def clear_inputs(seed: int = 2) -> Tensor:
    """Return 24 scenes and a slightly different copy of each, so that there is no doubt about nearest neighbours."""
    images, _ = draw_scenes(24, seed)
    return torch.cat([images, images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))])


@cache
def trained_network() -> nn.Module:
    """Return the network, in eval mode, with answers that are right and clear; values, directions and states are those of random heads."""
    torch.manual_seed(0)
    net = ManyOutputs().train()
    images, colours = draw_scenes(128, 1)
    pixels = colours.repeat_interleave(2, 1).repeat_interleave(2, 2)
    corners = colours[:, ::2, ::2].flatten(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _loss(net, images, colours, pixels, corners).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def _loss(net: ManyOutputs, images: Tensor, colours: Tensor, pixels: Tensor, corners: Tensor) -> Tensor:
    positions = net.body(images)
    flat = F.avg_pool2d(positions, 2).flatten(1)
    total = torch.zeros(())
    for i in range(2):
        answers = colours[:, 1, i] + 3 * (colours[:, i, 2] == i)
        total = total + F.cross_entropy(net.logits[i](flat), answers) + F.cross_entropy(net.probabilities[i](flat), (answers + 2 + i) % 6)
        total = total + F.binary_cross_entropy_with_logits(net.events[i](flat), (corners == i).float())
        total = total + F.cross_entropy(net.maps[i](positions), (pixels + i) % 3)
        total = total + F.cross_entropy(net.classes[i](positions), (pixels + 2 * i) % 3)
    return total


def with_stale_statistics(model: nn.Module) -> nn.Module:
    """Return a copy whose BatchNorms have the statistics of inputs in another range."""
    other = copy.deepcopy(model)
    norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        other(draw_scenes(64, 3)[0] * 3 + 1.5)
    return other.eval()
