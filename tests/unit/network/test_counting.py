"""Counts of parameters and MACs equal those by hand."""

import pytest
import torch
from torch import nn

from edgecompress.network.analyze import analyze
from edgecompress.network.counting import cost_of, params_of, record_layer_costs
from edgecompress.planning.plan import plan

# (layer, input without batch axis, params, MACs at batch size 1)
BY_HAND = {
    "linear": (nn.Linear(12, 7), (12,), 12 * 7 + 7, 12 * 7),
    "linear-tokens": (nn.Linear(12, 7, bias=False), (5, 12), 12 * 7, 5 * 12 * 7),
    "conv": (nn.Conv2d(6, 8, 3, padding=1), (6, 9, 7), 6 * 8 * 9 + 8, 6 * 8 * 9 * 9 * 7),
    "conv-stride": (nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), (6, 9, 8), 6 * 8 * 9, 6 * 8 * 9 * 5 * 4),
    "conv-rectangle-dilation": (nn.Conv2d(2, 4, (1, 3), dilation=2, bias=False), (2, 5, 9), 24, 24 * 5 * 5),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, bias=False), (6, 5, 5), 54, 54 * 9),
    "conv1d": (nn.Conv1d(4, 6, 3, bias=False), (4, 9), 72, 72 * 7),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 5, 3), 96, 96 * 15),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_equal_those_by_hand(name):
    layer, shape, params, macs = BY_HAND[name]
    with record_layer_costs(layer, 2) as seen:
        layer(torch.zeros(2, *shape))  # counted at batch size 1 whatever the batch
    assert (params_of(layer), sum(one.macs for one in seen.values())) == (params, macs)
    assert cost_of(layer.to("meta"), shape) == (params, macs)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_batch_may_lie_on_any_axis_and_be_folded_into_others(samples):
    class Folds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.conv = nn.Linear(4, 5), nn.Conv1d(5, 2, 3)

        def forward(self, x):
            y = self.fc(x.transpose(0, 1))  # (10, n, 5)
            return self.conv(y.transpose(0, 1).reshape(-1, 5, 5).mT)  # two windows of five positions a sample

    model = Folds()
    with record_layer_costs(model, samples) as seen:
        model(torch.zeros(samples, 10, 4))
    assert {name: one.macs for name, one in seen.items()} == {"fc": 20 * 10, "conv": 30 * 2 * 3}
    assert seen["fc"].activation_bytes == 4 * 10 * (4 + 5)
    stats = analyze(model, (torch.zeros(samples, 10, 4),), measure=False)
    assert stats.macs == 20 * 10 + 30 * 2 * 3
    fixed = plan(model, stats, macs_ratio=1.0, layers={"fc": ("svd", (1,))})
    assert fixed.layers[0].macs == 10 * (4 + 5)


def test_a_layer_that_runs_twice_counts_twice_with_its_parameters_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)

        def forward(self, x):
            return self.conv(self.conv(x)[:, :, ::2])

    model = Twice()
    with record_layer_costs(model) as seen:
        model(torch.zeros(1, 3, 8, 8))
    assert seen["conv"].calls == 2
    assert seen["conv"].macs == 81 * (64 + 32)
    assert seen["conv"].activation_bytes == 4 * (2 * 3 * 64 + 2 * 3 * 32)
    assert params_of(model) == 81


def test_a_layer_called_by_keyword_is_counted():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(input=x)

    with record_layer_costs(model := Keyword()) as seen:
        model(torch.zeros(1, 4))
    assert seen["fc"].macs == 20


def test_no_hooks_remain_even_when_the_model_fails():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError), record_layer_costs(model):
        model(torch.zeros(1, 4))
    assert not any(module._forward_hooks for module in model.modules())


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert params_of(model) == 9
