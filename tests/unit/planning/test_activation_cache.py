"""Laws of replaying a network with one layer replaced: the same outputs as a full run, without computing earlier layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgecompress.network import batches
from edgecompress.network.surgery import replace_module
from edgecompress.planning import activation_cache
from edgecompress.planning.activation_cache import record_activations, replay_before


class Counted(nn.Conv2d):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


class Parted(nn.Module):
    """A module with two outputs that also stores a tensor for another module."""

    def __init__(self):
        super().__init__()
        self.conv = Counted(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        self.left = y.mean((2, 3), keepdim=True)
        return y[:, :4], y[:, 4:]


class Awkward(nn.Module):
    """A network with in-place changes, modules called twice, a hook, a module with two outputs, and functions between modules."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Counted(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.twice, self.relu = Counted(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.parted = Parted()
        self.other, self.last = Counted(8, 8, 1), Counted(8, 8, 1)
        self.fc = nn.Linear(8, 5)
        self.other.register_forward_hook(lambda _, __, y: 2 * y)

    def forward(self, x):
        x = self.stem(x)
        y = self.twice(x)
        y += x
        x = self.twice(self.relu(y))
        a, b = self.parted(x)
        y = self.other(torch.cat([F.silu(a), b], 1))
        y *= self.parted.left
        y = self.last(self.relu(y))
        return self.fc(y.mean((2, 3))), y


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Awkward().eval()


def inputs():
    torch.manual_seed(1)
    return (torch.randn(6, 1, 12, 12),)


def layers(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("held", [10**9, 20_000, 0])
@torch.no_grad()
def test_a_replay_with_a_replaced_layer_equals_a_full_run(model, monkeypatch, held):
    monkeypatch.setattr(activation_cache, "MAX_BYTES", held)
    recording = record_activations(model, inputs())
    assert all(map(torch.equal, recording.outputs, batches.run_model(model, inputs())))
    for name in layers(model):
        dense = model.get_submodule(name)
        changed = nn.Sequential(dense, nn.Tanh())
        with replay_before(recording, dense):
            replace_module(model, name, changed)
            found = batches.run_model(model, inputs())
        whole = batches.run_model(model, inputs())
        replace_module(model, name, dense)
        assert all(map(torch.equal, found, whole)), name
        assert not torch.equal(found[0], recording.outputs[0])
    assert all(map(torch.equal, recording.outputs, batches.run_model(model, inputs())))


@torch.no_grad()
def test_a_replay_does_not_compute_layers_before_the_replaced_one(model):
    recording = record_activations(model, inputs())
    computed = {}
    for name in layers(model):
        with replay_before(recording, model.get_submodule(name)):
            Counted.calls = 0
            batches.run_model(model, inputs())
            computed[name] = Counted.calls
    # Six calls in all. The two of `twice`, of which one is changed in place, are computed again; `parted` gives no tensor, its layer does.
    assert computed == {"stem.0": 6, "twice": 5, "parted.conv": 5, "other": 4, "last": 3, "fc": 2}


def test_a_replay_before_a_layer_that_was_not_called_computes_everything(model):
    recording = record_activations(model, inputs())
    with replay_before(recording, nn.Linear(1, 1)):
        Counted.calls = 0
        batches.run_model(model, inputs())
    assert Counted.calls == 6
