"""The digest of code in memory changes with what the code does: for metrics, losses and networks given from Python."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from edgecompress.data.code import digest_code

SOURCE = """
import torch
from torch import nn

SCALE = 2.0

def helper(x):
    return x * SCALE

class Network(nn.Module):
    width = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, self.width)
        self.power = 1.0

    def forward(self, x):
        return helper(self.layer(x)) ** self.power

class Recall:
    def __init__(self):
        self.threshold = 0.5

    def update(self, outputs, targets):
        self.right = (outputs > self.threshold).sum()

    def compute(self):
        return {"recall": self.right}

def metric(outputs, targets, k=1):
    wanted = {"mean", "max"}
    return {name: helper(outputs.mean()) for name in wanted}

def make():
    limit = 1.0
    return lambda outputs, targets: {"below": (outputs < limit).mean()}

closure = make()
"""
EDITS = {
    "SCALE = 2.0": ("SCALE = 3.0", {"network", "metric"}),
    "x * SCALE": ("x / SCALE", {"network", "metric"}),
    "** self.power": ("* self.power", {"network"}),
    "self.power = 1.0": ("self.power = 2.0", {"network"}),
    "width = 3": ("width = 4", {"network"}),
    "threshold = 0.5": ("threshold = 0.6", {"object"}),
    "outputs > self": ("outputs >= self", {"object"}),
    "k=1": ("k=2", {"metric"}),
    "outputs.mean()": ("outputs.amax()", {"metric"}),
    "limit = 1.0": ("limit = 2.0", {"closure"}),
    "# nothing": ("# at all", set()),
}


def digests(source: str) -> dict[str, str]:
    space: dict[str, Any] = {"__name__": "script"}
    exec(compile(source, "script.py", "exec"), space)
    with torch.random.fork_rng(devices=[]):
        given = {"network": space["Network"](), "object": space["Recall"](), "metric": space["metric"], "closure": space["closure"]}
    return {name: digest_code(each) for name, each in given.items()}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_digest_of_what_it_is_in(edit: str) -> None:
    source = f"# nothing\n{SOURCE}"
    assert source.count(edit) == 1
    before, after = digests(source), digests(source.replace(edit, EDITS[edit][0]))
    assert {name for name in before if before[name] != after[name]} == EDITS[edit][1]


def test_settings_of_layers_and_of_partial_functions_count() -> None:
    assert digest_code(nn.Conv2d(1, 1, 3)) != digest_code(nn.Conv2d(1, 1, 3, stride=2))
    assert digest_code(nn.Conv2d(1, 1, 3)) == digest_code(nn.Conv2d(1, 1, 3).eval())
    assert digest_code(nn.Sequential(nn.ReLU(), nn.Tanh())) != digest_code(nn.Sequential(nn.Tanh(), nn.ReLU()))
    assert digest_code(partial(max, 1)) != digest_code(partial(max, 2))
    assert digest_code(None) != digest_code(True)
