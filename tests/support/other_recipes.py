"""Recipes of tasks that are no labelled classification of images, each with siblings of other shapes."""

from pathlib import Path

HEADER = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

"""


def write_recipe(folder: Path, text: str) -> Path:
    """Write `folder/recipe.py` with the usual imports before the text; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.py").write_text(HEADER + text)
    return folder


def sequential(layers: str, example: str, *, more: str = "") -> str:
    """Return the recipe of an nn.Sequential with random weights, of an example input's shape, e.g. `1, 3, 8, 8`."""
    return f"""
def model():
    torch.manual_seed(0)
    return nn.Sequential({layers}).eval()


def example_inputs():
    return (torch.zeros({example}),)

{more}"""


def data(*functions: str, inputs: str, targets: str = "") -> str:
    """Return functions of a recipe that give 96 samples each; `targets` is computed from the inputs `x`."""
    items = f"x, {targets}" if targets else "x"
    return "".join(
        f"\n\ndef {name}():\n    x = draw(96, {inputs}, seed={seed})\n    return TensorDataset({items})\n"
        for seed, name in enumerate(functions, start=1)
    )


_UNTRAINED = {
    # A map without classes, and a signal: nothing tells what their numbers mean.
    "depth-map": sequential(
        "nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 2, 3, padding=1)", "1, 1, 16, 20"
    )
    + data("eval_data", inputs="1, 16, 20"),
    "denoised-signal": sequential(
        "nn.Conv1d(2, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.Tanh(), nn.Conv1d(32, 1, 1)", "1, 2, 48"
    )
    + data("eval_data", inputs="2, 48"),
    # Directions of sentences, whose tokens are integers.
    "sentence-embedder": """
class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.first, self.last = nn.Embedding(60, 48), nn.Linear(48, 96), nn.Linear(96, 32)

    def forward(self, tokens):
        x = self.tokens(tokens)  # (n, 12, 48)
        return F.normalize(self.last(F.relu(self.first(x))).mean(1), dim=-1)


def model():
    torch.manual_seed(0)
    return Embedder().eval()


def example_inputs():
    return (torch.zeros(1, 12, dtype=torch.int64),)


def eval_data():
    return TensorDataset(torch.randint(60, (96, 12), generator=torch.Generator().manual_seed(1)))
""",
}
UNLABELLED = dict(_UNTRAINED)  # nothing to train on

_POINTS = (
    "nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), "
)
FLOAT_TARGETS = {
    "points": sequential(_POINTS + "nn.Linear(24 * 16, 6)", "1, 1, 16, 16")
    + data("train_data", "eval_data", inputs="1, 16, 16", targets="x.flatten(1)[:, :6].sigmoid()"),
    "age": sequential(_POINTS + "nn.Linear(24 * 16, 1)", "1, 1, 16, 16")
    + data("train_data", "eval_data", inputs="1, 16, 16", targets="x.mean((1, 2, 3))"),
    "pairs": sequential(_POINTS + "nn.Linear(24 * 16, 10), nn.Unflatten(1, (5, 2))", "1, 1, 16, 16")
    + data("train_data", "eval_data", inputs="1, 16, 16", targets="x[:, 0, :5, :2] * 100"),
}

_AUXILIARY = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Dropout(0.1))
        self.fc, self.aux = nn.Linear(24, 4), nn.Linear(16, 4)

    def forward(self, x):
        a = self.stem(x)
        y = self.fc(self.body(a).mean((2, 3)))
        side = self.aux(a.mean((2, 3)))
        {returns}


def model():
    torch.manual_seed(0)
    return Net()


def example_inputs():
    return (torch.zeros(1, 3, 12, 12),)

""" + data("train_data", "eval_data", inputs="3, 12, 12", targets="x.mean((2, 3)).argmax(1)")
AUXILIARY = {
    "a tuple in training": _AUXILIARY.format(returns="return (y, side) if self.training else y"),
    "a dict in training": _AUXILIARY.format(returns='return {"aux": side, "out": y} if self.training else y'),
    "the side alone in training": _AUXILIARY.format(returns="return side if self.training else y"),
}

# Boxes in pixels beside scores in one tensor, of either order of axes.
_DETECTOR = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
        self.box, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)
        for head in (self.box, self.score):
            nn.init.normal_(head.weight, std=1.5)

    def forward(self, x):
        x = self.body(x)
        boxes = (self.box(x).flatten(2) * 60 + 160).clamp(0, 320)
        scores = (self.score(x).flatten(2) - 1).sigmoid()
        {returns}


def model():
    torch.manual_seed(0)
    return Net().eval()


def example_inputs():
    return (torch.zeros(1, 3, 24, 32),)

""" + data("calibration_data", "eval_data", inputs="3, 24, 32")
DETECTORS = {
    "channels": _DETECTOR.format(returns="return torch.cat([boxes, scores], 1)"),
    "last axis": _DETECTOR.format(returns="return torch.cat([scores, boxes], 1).transpose(1, 2)"),
}

# Integers that the network computes itself, from clear images.
_ANSWERS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
        with torch.no_grad():
            self.body[0].weight.mul_(0.05)
            self.body[0].bias.zero_()
            self.body[2].weight.mul_(0.05)
            self.body[2].bias.zero_()
            for i in range(4):
                self.body[0].weight[i, i, 1, 1] = 1
                self.body[2].weight[i, i] = 1

    def forward(self, x):
        y = self.body(x)
        {returns}


def model():
    torch.manual_seed(0)
    return Net().eval()


def example_inputs():
    return (torch.zeros(1, 4, 8, 8),)


def eval_data():
    classes = torch.randint(4, (48, {cells}, {cells}), generator=torch.Generator().manual_seed(1))
    x = F.one_hot(classes, 4).movedim(-1, 1).float().repeat_interleave(8 // {cells}, 2).repeat_interleave(8 // {cells}, 3)
    return TensorDataset(x + 0.05 * draw(48, 4, 8, 8))
"""
ANSWERS = {
    "class map": _ANSWERS.format(returns="return y.argmax(1)", cells=2),
    "best two": _ANSWERS.format(returns="best = y.mean((2, 3)).topk(1, dim=1)\n        return best.values, best.indices", cells=1),
}

TINY = {
    "vector": sequential("nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)", "1, 6") + data("eval_data", inputs="6"),
    "signal": sequential("nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2)", "1, 1, 12") + data("eval_data", inputs="1, 12"),
}

# Right on every image: the class is the brightness, and class folders are named by numbers or words.
FOLDERS = """
CLASSES = {names!r}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, len(CLASSES))
        level = torch.arange(len(CLASSES)) / (len(CLASSES) - 1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, 0, 1, 1] = 1.0
            self.conv.bias.zero_()
            self.fc.weight.copy_((50 * level / 16)[:, None].expand(-1, 16))
            self.fc.bias.copy_(-25 * level.square())

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def model():
    return Net()


def example_inputs():
    return (torch.zeros(1, 1, 8, 8),)


def labels():
    return CLASSES
"""
