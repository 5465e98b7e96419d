"""Synthetic scenes: discs, squares and triangles on textured backgrounds, with the box of each. The same seed gives the same scenes."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

SIDE = 96
MAX_OBJECTS = 4
SIZES = (14.0, 44.0)  # pixels of an object's side
MAX_OVERLAP = 0.1  # intersection of two boxes over the smaller one
MIN_CONTRAST = 0.3  # of an object's colour to the background's mean, in some channel
Target = dict[str, Tensor]


class Scenes(Dataset[tuple[Tensor, Target]]):
    """Items are `(image, {"boxes": (4, 4), "classes": (4,)})`: left, top, right, bottom in pixels, class −1 where there is no object.

    Each scene is drawn when it is first asked for, and kept as bytes.
    """

    def __init__(self, count: int, *, seed: int, name: str) -> None:
        self.count, self.seed = count, seed
        self.drawn: dict[int, tuple[Tensor, Target]] = {}
        self.source = f"synthetic scenes, {name}: {count} images of 96×96, seed {seed}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index not in self.drawn:
            image, target = draw_scene(torch.Generator().manual_seed(self.seed * 1_000_000 + index))
            self.drawn[index] = (image * 255).round().to(torch.uint8), target
        pixels, target = self.drawn[index]
        return normalize(pixels), target


def normalize(pixels: Tensor) -> Tensor:
    """Return bytes as what the network takes, −1 to 1."""
    return (pixels.float() / 255 - 0.5) / 0.5


def draw_scene(generator: torch.Generator) -> tuple[Tensor, Target]:
    """Return an image `(3, 96, 96)` in [0, 1] and its objects."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    image = _draw_background(generator)
    boxes, classes = torch.zeros(MAX_OBJECTS, 4), torch.full((MAX_OBJECTS,), -1)
    wanted = 1 + int(uniform(1) * MAX_OBJECTS)
    found = 0
    for _ in range(4 * wanted):  # a place that is taken is tried elsewhere
        size = SIZES[0] + float(uniform(1)) * (SIZES[1] - SIZES[0])
        x, y = (size / 2 + uniform(2) * (SIDE - size)).tolist()
        kind = int(uniform(1) * 3)
        cover = _draw_shape(kind, x, y, size, float(uniform(1)) * 2 * math.pi)  # (96, 96)
        box = _box_of(cover)
        if found and float(_overlaps(box, boxes[:found]).max()) > MAX_OVERLAP:
            continue
        colour = uniform(3)
        mean = image.flatten(1).mean(1)
        if float((colour - mean).abs().max()) < MIN_CONTRAST:
            colour = (mean + 0.5) % 1.0
        shade = 1 + 0.25 * (uniform(1) - 0.5) * torch.linspace(-1, 1, SIDE)[:, None] + 0.05 * torch.randn(SIDE, SIDE, generator=generator)
        image = image * (1 - cover) + (colour[:, None, None] * shade) * cover
        boxes[found], classes[found] = box, kind
        found += 1
        if found == wanted:
            break
    return (image + 0.03 * torch.randn(3, SIDE, SIDE, generator=generator)).clamp(0, 1), {"boxes": boxes, "classes": classes}


def _draw_background(generator: torch.Generator) -> Tensor:
    """Return coarse and fine noise, a grating and some lines, `(3, 96, 96)`."""
    y, x = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    image = 0.2 + 0.6 * torch.rand(3, 1, 1, generator=generator).expand(3, SIDE, SIDE)
    for cells, strength in ((5, 0.15), (24, 0.06)):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image = image + strength * F.interpolate(noise, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    angle, wave, phase, strength = (torch.rand(4, generator=generator) * torch.tensor([math.pi, 0.6, 6.3, 0.12])).tolist()
    image = image + strength * torch.sin((x * math.cos(angle) + y * math.sin(angle)) * (0.1 + wave) + phase)
    for _ in range(2):
        angle, offset, level = torch.rand(3, generator=generator).tolist()
        across = x * math.cos(angle * math.pi) + y * math.sin(angle * math.pi) - (2 * offset - 0.5) * SIDE
        image = image + 0.5 * (level - 0.5) * (1 - across.abs() / 1.5).clamp(0, 1)
    return image.clamp(0, 1)


def _draw_shape(kind: int, x: float, y: float, size: float, angle: float) -> Tensor:
    """Return how much of each pixel an object covers, `(96, 96)`: 0 disc, 1 square, 2 triangle."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5 - y, torch.arange(SIDE) + 0.5 - x, indexing="ij")
    if kind == 0:
        return (size / 2 - (rows.square() + columns.square()).sqrt() + 0.5).clamp(0, 1)
    sides = 4 if kind == 1 else 3
    inner = size / 2 * math.cos(math.pi / sides)  # distance from the centre to a side; corners lie on the disc
    depth = torch.full((SIDE, SIDE), SIDE * 1.0)
    for k in range(sides):
        direction = angle + 2 * math.pi * k / sides
        depth = torch.minimum(depth, inner - columns * math.cos(direction) - rows * math.sin(direction))
    return (depth + 0.5).clamp(0, 1)


def _box_of(cover: Tensor) -> Tensor:
    rows, columns = ((cover > 0.5).any(axis).nonzero()[:, 0] for axis in (1, 0))
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return the intersection of a box with others over the smaller of the two areas."""
    sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp_min(0)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (box, others)]
    return sides.prod(1) / torch.minimum(*areas)
