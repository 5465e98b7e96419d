"""Every check of the table finds its fault on a network of a few weights, names cause and remedy, and is silent about a sound network."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.attention import unfuse_attention
from edgecompress.network.checks import CHECKS, as_error, check_dense, find_all
from edgecompress.network.exported import to_program
from edgecompress.network.probe import Probe, SplitSamples


def make(forward, **modules):
    """Return a network of these modules in eval mode whose forward is a function of the network and its inputs."""
    torch.manual_seed(0)
    net = type("Net", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(net, name, module)
    return net.eval()


def check(net, *example, data=(), pair=None, kinds=tuple(CHECKS)):
    """Return the findings of the probe of a network, whose example is one image unless one is given."""
    rows = example or (torch.zeros(1, 3, 8, 8),)
    one = tuple(x[:1] for x in rows)
    return find_all(Probe(net, one, rows=rows, pair=pair, data=data, export=lambda: to_program(net, one, name="net")), "net", kinds)


def conv():
    return nn.Conv2d(3, 4, 3, padding=1)


class Gate(nn.Module):
    def forward(self, x):
        return x * 2 if x.mean() > 0.1 else x


def forward_of_one(net, x):
    return net.fc(net.conv(x).reshape(1, 4, 64))


# Name: (network, its example or () for an image, check, words of the finding, words of the remedy).
FAULTS = {
    "half": (lambda: nn.Sequential(conv()).half(), (), "number format", "0.weight is float16", "model.float()"),
    "half example": (lambda: nn.Sequential(conv()), (torch.zeros(1, 3, 8, 8).half(),), "number format", "input 0 is float16", "float32"),
    "double": (lambda: nn.Sequential(conv()).double(), (), "number format", "0.weight is float64", "model.float()"),
    "meta": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")), (), "device", "0.weight is on the meta device", "load the weights"),
    "not a module": (lambda: conv, (), "module", "model() returned function", "return a torch.nn.Module"),
    "does not run": (
        lambda: nn.Sequential(nn.Linear(3, 4)).eval(),
        (),
        "example",
        "forward() of Linear 0 for an input of shape (1, 3, 8, 8) fails with RuntimeError: mat1",
        "give example_inputs()",
    ),
    "noise": (
        lambda: make(lambda net, x: net.drop(net.conv(x)), conv=conv(), drop=make(lambda _, x: F.dropout(x, 0.5))),
        (),
        "repeatable",
        "two runs on one sample in eval mode differ, first in drop; it draws random numbers",
        "training=self.training",
    ),
    "one sample": (
        lambda: make(forward_of_one, conv=conv(), fc=nn.Linear(64, 4)),
        (),
        "batch",
        "takes one sample at a time; on two it fails: tests/unit/network/test_checks.py:",
        "reshape(len(x), …)",
    ),
    "batch statistics": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)).eval(),
        (),
        "batch",
        "first in 1, a BatchNorm2d without running statistics",
        "GroupNorm",
    ),
    "second axis": (
        lambda: make(lambda net, x: net.lstm(x)[0], lstm=nn.LSTM(8, 4)),
        (torch.zeros(1, 5, 8),),
        "batch",
        "first in lstm, a LSTM whose second axis is the batch",
        "batch_first=True",
    ),
    "time first": (
        lambda: make(lambda net, x: net.lstm(x)[0][-1], lstm=nn.LSTM(8, 4)),
        (torch.zeros(20, 1, 8),),
        "batch axis",
        "the first axis of the example inputs (20, 1, 8) is no batch: an output is (1, 4)",
        "batch_first=True",
    ),
    "time first, every step": (
        lambda: make(lambda net, x: net.lstm(x)[0], lstm=nn.LSTM(8, 4)),
        (torch.zeros(20, 1, 8),),
        "batch axis",
        "is no batch: an output depends on several of its 20 entries",
        "batch_first=True",
    ),
    "branch": (
        lambda: make(lambda net, x: net.gate(net.conv(x)), conv=conv(), gate=Gate()),
        (),
        "export",
        "x.mean() > 0.1 else x, in Gate gate)",
        "torch.where",
    ),
    "training mode": (
        lambda: make(lambda net, x: (net.conv(x), net.conv(x)) if net.training or net.conv.training else net.conv(x), conv=conv()),
        (),
        "training mode",
        "other outputs in training mode",
        "let forward return those of eval mode",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_with_its_cause_and_its_remedy(name):
    build, example, kind, fact, remedy = FAULTS[name]
    (error,) = check(build(), *example).errors
    assert error.kind == kind
    assert fact in error.text
    assert remedy in error.remedy
    assert "\n" not in error.text
    raised = as_error(error, "net")
    assert type(raised) is CHECKS[kind].error
    assert re.fullmatch(r"[^;]+: .+; .+", str(raised))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_module_is_refused():
    net = nn.Sequential(torch.jit.trace(nn.Linear(8, 4), torch.zeros(1, 8)))
    (error,) = check(net, torch.zeros(1, 8)).errors
    assert "0 is a TorchScript module" in error.text


SOUND = {
    "classifier": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval(), ()),
    "video": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU()).eval(), (torch.zeros(1, 3, 4, 8, 8),)),
    "tokens": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), (torch.arange(6)[None],)),
    "attention": (lambda: unfuse_attention(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()), (torch.zeros(1, 5, 8),)),
    "dead on zeros": (lambda: make(lambda net, x: net.fc(x / x.abs().sum(1, keepdim=True)), fc=nn.Linear(4, 2)), (torch.zeros(1, 4),)),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(), (torch.zeros(1, 4),)),
}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_found_in_a_sound_network(name):
    build, example = SOUND[name]
    found = check(build(), *example)
    assert found.findings == ()
    assert found.checks == tuple(CHECKS)
    assert found.macs
    assert not found.other_macs


def test_an_example_of_several_samples_is_cut_and_that_is_said():
    (note,) = check(nn.Sequential(conv()), torch.zeros(5, 3, 8, 8)).findings
    assert (note.severity, note.text) == ("note", "the example has 5 samples; files take one")


def test_unregistered_layers_are_named_and_their_macs_are_counted():
    net = make(lambda net, x: net.blocks[0](net.head(x)), head=conv())
    net.blocks = [nn.Conv2d(4, 4, 3, padding=1)]
    found = check(net)
    (warning,) = found.findings
    assert warning.severity == "warning"
    assert warning.text.startswith("blocks[0] (Conv2d): not registered; 57.1% of the MACs")
    assert "nn.ModuleList" in warning.remedy
    assert found.macs == (3 + 4) * 4 * 9 * 64
    assert sum(found.other_macs.values()) == 4 * 4 * 9 * 64


def test_weights_of_functions_and_of_recurrent_layers_are_counted():
    net = make(lambda net, x: F.linear(net.gru(net.fc(x))[0], net.weight), fc=nn.Linear(8, 8), gru=nn.GRU(8, 4, batch_first=True))
    net.weight = nn.Parameter(torch.randn(3, 4))
    found = check(net, torch.zeros(1, 5, 8))
    assert sum(found.other_macs.values()) == 5 * (3 * 4 * (8 + 4) + 3 * 4)
    assert found.macs == sum(found.other_macs.values()) + 5 * 64
    (note,) = found.findings
    assert (note.kind, note.severity) == ("counted weights", "note")


def test_a_module_under_two_names_is_one():
    block = nn.Sequential(conv())
    net = make(lambda net, x: net.stages[0](x), first=block, stages=nn.ModuleList([block]))
    found = check(net)
    (note,) = found.findings
    assert note.text.startswith("stages.0 is first: one module under two names")
    assert not found.other_macs


def test_frozen_parameters_are_said():
    (note,) = check(nn.Sequential(conv(), conv()).requires_grad_(False), kinds=("frozen weights",)).findings
    assert note.severity == "note"
    assert note.text.startswith("4 of 4 parameters are frozen")


CLASSIFIER = nn.Sequential(nn.Linear(4, 3))


def split(low, high, *, name="the training data", labels=None, whole=False):
    x = torch.linspace(low, high, 8).reshape(2, 4)
    return SplitSamples(name, (x.round() if whole else x,), labels=labels, classes=3)


@pytest.mark.parametrize(
    ("data", "kind", "severity", "text"),
    [
        ((SplitSamples("the training data", error="list: its shape is (3,); resize"),), "data", "error", "list: its shape is (3,)"),
        ((split(0, 1, labels=torch.tensor([0, 3])),), "labels", "error", "labels from 0 to 3, the output has 3 classes"),
        ((split(0, 1, labels=torch.tensor([-1, 2])),), "labels", "error", "labels from -1 to 2"),
        ((split(0, 255, whole=True),), "data range", "warning", "whole numbers from 0 to 255"),
        ((split(0, 1), split(0, 250.5, name="the evaluation data")), "data range", "warning", "data gives 0 … 1, the evaluation data 0 …"),
        ((split(-2, 2, labels=torch.tensor([0, 2])), split(-1, 1)), "", "", ""),
    ],
)
def test_data_that_do_not_fit_are_found(data, kind, severity, text):
    found = check(CLASSIFIER, torch.zeros(1, 4), data=data).findings
    assert [(finding.kind, finding.severity) for finding in found] == ([(kind, severity)] if kind else [])
    assert all(text in finding.text and finding.remedy for finding in found)


def test_a_sample_that_the_network_cannot_take_is_an_error_of_the_example():
    net = nn.Sequential(nn.Embedding(4, 3))
    (error,) = check(net, torch.zeros(1, 2, dtype=torch.long), pair=(torch.tensor([[0, 1], [9, 0]]),)).errors
    assert "0: index 9 in an embedding of 4 rows" in error.text


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    check(net)
    assert not net.training
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_checks_without_a_run_need_no_example():
    with pytest.raises(ConfigError, match=r"net: 0\.weight is bfloat16; give the model in float32, model\.float\(\)"):
        check_dense(nn.Sequential(conv()).bfloat16(), subject="net")


def test_every_check_needs_earlier_ones_alone():
    names = list(CHECKS)
    assert all(names.index(other) < i for i, check in enumerate(CHECKS.values()) for other in check.needs)
    assert {check.error for check in CHECKS.values()} == {ConfigError, UnsupportedError}


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (255.0, True), (1 / 255, True)])
def test_data_that_batchnorm_was_not_trained_on_are_found(scale, warned):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, momentum=1.0))
    net(torch.rand(16, 3, 8, 8))
    pair = (torch.rand(2, 3, 8, 8) * scale,)
    found = check(net.eval(), pair=pair).findings
    assert [(finding.kind, finding.severity) for finding in found] == ([("data statistics", "warning")] if warned else [])
    assert not warned or found[0].text.startswith("the BatchNorm 1 reads values with ")


def test_outputs_that_the_user_describes_wrongly_are_found():
    def read():
        raise ConfigError("recipe.py:5: outputs(): no output is named 'tags'; the network returns output_0")

    net = make(lambda net, x: net.head(x.flatten(1)), head=nn.Linear(192, 2))
    example = (torch.zeros(1, 3, 8, 8),)
    found = find_all(Probe(net, example, export=lambda: to_program(net, example, name="net"), read_outputs=read), "net")
    (finding,) = found.errors
    assert (finding.kind, finding.remedy) == ("outputs", "the network returns output_0")
    assert "metric and loss" not in found.checks
