"""Training and held-out data of the networks in fidelity_networks.py; the same seed makes the same data.

The sentences are those of Python's own documentation strings; the pictures are the repository's Fashion-MNIST;
scenes and tones are synthetic.
"""

import ast
import itertools
import math
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fidelity_networks import BIN_CENTS, BINS, LOWEST_HZ, MAP_SIDE, POSE_SPREAD, RATE, SCENE_SIDE, SHAPES, VOCABULARY, WINDOW, WORDS
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from edgecompress import toolchains
from edgecompress.data import load_data

MODULES = (
    *("_pydecimal", "_pyio", "ast", "configparser", "difflib", "doctest", "enum", "imaplib"),
    *("inspect", "ipaddress", "smtplib", "ssl", "statistics", "tarfile", "threading", "typing"),
)
MIN_WORDS, MAX_WORDS = 6, 40  # of a sentence
MAX_OBJECTS = 3
NO_OBJECT = -1


class Items(Dataset[Any]):
    """Inputs `(n, …)` with targets, a tensor or a dict of tensors `(n, …)`; without targets an item is the input alone."""

    def __init__(self, inputs: Tensor, targets: Any, source: str) -> None:
        self.inputs, self.targets, self.source = inputs, targets, f"{len(inputs)} {source}"

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Any:
        return self.inputs[i] if self.targets is None else (self.inputs[i], tree_map(lambda column: column[i], self.targets))


class Data(NamedTuple):
    train: Items
    held_out: Items


def split(inputs: Tensor, targets: Any, held_out: int, source: str) -> Data:
    """Set the last `held_out` samples apart."""
    parts = slice(None, -held_out), slice(-held_out, None)
    train, test = (Items(inputs[part], tree_map(lambda column, part=part: column[part], targets), source) for part in parts)
    return Data(train, test)


def hash_ngrams(sentence: list[str]) -> list[int]:
    """Return numbers of the words and pairs of neighbouring words of a sentence, WORDS of them; 0 stands for none."""
    grams = [*sentence[: 2 * WORDS // 3], *map(" ".join, itertools.pairwise(sentence))][:WORDS]
    return [1 + zlib.crc32(gram.encode()) % (VOCABULARY - 1) for gram in grams] + [0] * (WORDS - len(grams))


def make_sentences(train: int, held_out: int) -> Data:
    """Return sentences of the documentation strings of Python's own modules with the numbers of the modules."""
    found: dict[str, int] = {}  # sentence → number of the module that has it first
    for number, module in enumerate(MODULES):
        tree = ast.parse(Path(ast.__file__).with_name(f"{module}.py").read_text("utf-8"))
        texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        for paragraph in re.split(r"\n\s*\n", "\n\n".join(texts)):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                words = re.findall(r"[a-z_]+", sentence.lower())
                if MIN_WORDS <= len(words) <= MAX_WORDS:
                    found.setdefault(" ".join(words), number)
    sentences = list(found)
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()[-train - held_out :]
    words = torch.tensor([hash_ngrams(sentences[i].split()) for i in order])
    return split(words, torch.tensor([found[sentences[i]] for i in order]), held_out, "sentences of Python's documentation strings")


class Scenes(NamedTuple):
    """Images `(n, 3, side, side)`, shape of each pixel `(n, side, side)` with 0 for none, boxes `(n, 3, 4)`, and shapes `(n, 3)`."""

    images: Tensor
    masks: Tensor
    boxes: Tensor
    shapes: Tensor


def render_scenes(n: int, side: int, seed: int) -> Scenes:
    """Render one to three circles, squares and triangles, each in a quarter of its own, on a background with noise."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    images = torch.rand(n, 3, 1, 1, generator=g) * 0.5 + 0.25 * torch.rand(n, 3, side // 8, side // 8, generator=g).repeat_interleave(
        8, 2
    ).repeat_interleave(8, 3)
    masks = torch.zeros(n, side, side, dtype=torch.int64)
    boxes, shapes = torch.zeros(n, MAX_OBJECTS, 4), torch.full((n, MAX_OBJECTS), NO_OBJECT)
    quarters = torch.rand(n, 4, generator=g).argsort(1)
    objects = torch.randint(1, MAX_OBJECTS + 1, (n,), generator=g)
    for k in range(MAX_OBJECTS):
        r = side * (0.1 + 0.12 * torch.rand(n, generator=g))
        room = side / 2 - 2 * r
        cx = (quarters[:, k] % 2) * side / 2 + r + room * torch.rand(n, generator=g)
        cy = (quarters[:, k] // 2) * side / 2 + r + room * torch.rand(n, generator=g)
        shape = torch.randint(SHAPES, (n,), generator=g)
        dx, dy, size = x - cx[:, None, None], y - cy[:, None, None], r[:, None, None]
        square = (dx.abs() < size) & (dy.abs() < size)
        inside = torch.stack((dx**2 + dy**2 < size**2, square, square & (dy + size > 2 * dx.abs())))  # (shapes, n, side, side)
        here = inside[shape, torch.arange(n)] & (k < objects)[:, None, None]
        colour = torch.rand(n, 3, 1, 1, generator=g)
        images = torch.where(here[:, None], colour, images)
        masks = torch.where(here, shape[:, None, None] + 1, masks)
        boxes[:, k] = torch.where((k < objects)[:, None], torch.stack((cx, cy, 2 * r, 2 * r), 1), 0.0)
        shapes[:, k] = torch.where(k < objects, shape, NO_OBJECT)
    return Scenes(images + 0.1 * torch.randn(images.shape, generator=g), masks, boxes, shapes)


def make_maps(train: int, held_out: int) -> Data:
    """Return images with the shape of each pixel."""
    made = render_scenes(train + held_out, MAP_SIDE, seed=1)
    return split(made.images, made.masks, held_out, "synthetic shapes")


def make_detections(train: int, held_out: int) -> Data:
    """Return scenes with the boxes and shapes of at most MAX_OBJECTS objects."""
    made = render_scenes(train + held_out, SCENE_SIDE, seed=2)
    return split(made.images, {"boxes": made.boxes, "shapes": made.shapes}, held_out, "synthetic scenes")


def make_tones(train: int, held_out: int) -> Data:
    """Return tones of four harmonics in noise with their pitch in cents above LOWEST_HZ."""
    g, n = torch.Generator().manual_seed(3), train + held_out
    cents = torch.rand(n, generator=g) * BINS * BIN_CENTS
    angle = 2 * math.pi * LOWEST_HZ * 2 ** (cents / 1200)[:, None] * torch.arange(WINDOW) / RATE  # (n, WINDOW)
    tones = torch.zeros(n, WINDOW)
    for k in range(1, 5):
        level = torch.rand(n, 1, generator=g) / k if k > 1 else 1.0
        tones += level * torch.sin(k * angle + 2 * math.pi * torch.rand(n, 1, generator=g))
    tones /= tones.std(1, keepdim=True)
    tones += (0.1 + 0.4 * torch.rand(n, 1, generator=g)) * torch.randn(tones.shape, generator=g)
    return split(tones[:, None], cents, held_out, "synthetic tones")


def make_poses(train: int, held_out: int) -> Data:
    """Return pictures of Fashion-MNIST, each turned, moved and scaled, with angle, shifts and scale."""
    g = torch.Generator().manual_seed(4)
    folder = toolchains.example() / "data"
    columns = []
    for part, n in (("train", train), ("eval", held_out)):
        samples = load_data(folder, part, preprocessing=None, example=(torch.zeros(1, 1, 28, 28),))  # type: ignore[arg-type]
        columns += [samples[i][0] for i in torch.randperm(len(samples), generator=g)[:n].tolist()]
    pictures = torch.stack(columns)
    poses = (torch.rand(len(pictures), 4, generator=g) * 2 - 1) * math.sqrt(3) * torch.tensor(POSE_SPREAD) + torch.tensor((0.0, 0, 0, 1))
    turn, across, down, scale = poses.T
    cosine, sine = torch.cos(turn.deg2rad()) / scale, torch.sin(turn.deg2rad()) / scale
    # `affine_grid` maps places of the result to places of the picture, in half sides.
    x, y = -across / 14, -down / 14
    rows = torch.stack((cosine, sine, cosine * x + sine * y, -sine, cosine, -sine * x + cosine * y), 1).view(-1, 2, 3)
    moved = F.grid_sample(pictures, F.affine_grid(rows, list(pictures.shape), align_corners=False), align_corners=False)
    return split(moved, poses, held_out, "moved pictures of Fashion-MNIST")
