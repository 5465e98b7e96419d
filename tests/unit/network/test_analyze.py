"""`analyze` counts and times every layer, and leaves the model unchanged."""

import copy

import pytest
import torch
from support.networks import Net
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.network.analyze import analyze

IMAGE = (torch.zeros(1, 1, 8, 8),)


def test_each_layer_is_listed_with_its_shapes_and_costs():
    stats = analyze(Net(), IMAGE, name="net")
    assert [(s.name, s.kind, s.weight_shape, s.input_shape, s.output_shape) for s in stats.layers] == [
        ("stem", "Conv2d", (16, 1, 3, 3), (1, 8, 8), (16, 8, 8)),
        ("body", "Conv2d", (32, 16, 3, 3), (16, 8, 8), (32, 4, 4)),
        ("mix", "Conv2d", (32, 32, 1, 1), (32, 4, 4), (32, 4, 4)),
        ("head", "Linear", (10, 128), (128,), (10,)),
    ]
    assert [s.macs for s in stats.layers] == [144 * 64, 4608 * 16, 1024 * 16, 1280]
    assert [s.params for s in stats.layers] == [144, 4608, 1056, 1290]
    assert stats.macs == sum(s.macs for s in stats.layers)
    assert stats.params == sum(p.numel() for p in Net().parameters())
    assert stats.layers[0].activation_bytes == 4 * (64 + 16 * 64)
    assert (stats.model, stats.input_shapes) == ("net", ((1, 1, 8, 8),))


def test_times_are_positive_and_their_conditions_are_recorded():
    stats = analyze(Net(), IMAGE)
    assert stats.latency_ms > 0
    assert all(s.latency_ms > 0 for s in stats.layers)
    assert stats.conditions == {"runtime": f"torch {torch.__version__} eager", "threads": "1", "repetitions": "15"}


def test_without_measuring_there_are_no_times():
    stats = analyze(Net(), IMAGE, measure=False)
    assert stats.latency_ms is None
    assert {s.latency_ms for s in stats.layers} == {None}
    assert stats.conditions == {}


def test_modes_threads_and_hooks_of_the_model_are_restored():
    model = Net().train()
    model.bn1.eval()
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    analyze(model, IMAGE)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert (model.training, model.bn1.training, model.bn2.training) == (True, False, True)
    assert torch.get_num_threads() == threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_that_do_not_run_are_not_listed():
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "spare": nn.Linear(3, 3)})
    model.forward = lambda x: model["used"](x)
    assert [s.name for s in analyze(model, (torch.zeros(1, 3),), measure=False).layers] == ["used"]


def model_raising(error):
    class Broken(nn.Module):
        def forward(self, x):
            raise error

    return Broken()


@pytest.mark.parametrize(
    ("model", "inputs", "what"),
    [
        (
            Net(),
            (torch.zeros(1, 3, 8, 8),),
            r"forward\(\) of Conv2d .* shape \(1, 3, 8, 8\) fails with .*; give example_inputs\(\) and the data the shape",
        ),
        (
            Net(),
            (torch.zeros(1, 1, 8, 8), torch.zeros(1)),
            r"\(1,\) fails .*takes 2 positional arguments.*; give .* as many inputs",
        ),
        (model_raising(AssertionError()), IMAGE, "AssertionError"),
        (model_raising(KeyError("size")), IMAGE, "'size'"),
        (model_raising(ValueError("\n")), IMAGE, "ValueError"),
    ],
)
def test_a_model_that_does_not_run_is_refused_and_restored(model, inputs, what):
    model.train()
    with pytest.raises(ConfigError, match=what) as refusal:
        analyze(model, inputs, name="net")
    assert "\n" not in str(refusal.value)
    assert model.training
