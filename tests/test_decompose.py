"""Laws of decompose."""

import copy

import msgspec
import pytest
import torch
from support.networks import Net
from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.models import is_decomposed, replace
from edgecompress.verbs.analyze import analyze
from edgecompress.verbs.decompose import decompose
from edgecompress.verbs.plan import plan
from edgecompress.weights import fingerprint

IMAGE = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def made(net):
    return plan(net, analyze(net, (IMAGE[:1],), measure=False), macs_ratio=0.5, rank_multiple=4)


def test_the_original_is_left_alone(net, made):
    before, y = fingerprint(net), net(IMAGE)
    compact, _ = decompose(net, made)
    with torch.no_grad():
        for p in compact.parameters():
            p.zero_()
    assert fingerprint(net) == before
    assert torch.equal(net(IMAGE), y)
    assert is_decomposed(compact)
    assert not is_decomposed(net)


def test_what_was_measured_is_what_was_planned(net, made):
    compact, result = decompose(net, made)
    assert result.relative_errors == pytest.approx({p.layer: p.relative_error for p in made.layers})
    assert result.mean_relative_error == pytest.approx(sum(p.relative_error for p in made.layers) / len(made.layers))
    after = analyze(compact, (IMAGE[:1],), measure=False)
    assert (result.params, result.macs) == (made.params, made.macs) == (after.params, after.macs)


def test_a_saved_state_loads_into_the_unfitted_form_bit_for_bit(net, made):
    fitted, _ = decompose(net, made)
    empty, result = decompose(net, made, fit=False)
    empty.load_state_dict(fitted.state_dict(), strict=True)
    assert torch.equal(empty.eval()(IMAGE), fitted.eval()(IMAGE))
    assert result.relative_errors == {p.layer: p.relative_error for p in made.layers}


def test_an_empty_plan_gives_an_equal_copy(net, made):
    empty = msgspec.structs.replace(made, layers=())
    compact, result = decompose(net, empty)
    assert compact is not net
    assert torch.equal(compact(IMAGE), net(IMAGE))
    assert (result.relative_errors, result.mean_relative_error) == ({}, 0.0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"layer": "gone"}, ConfigError, "gone: the plan names it, the model has no such layer; plan again"),
        ({"layer": "body.deeper"}, ConfigError, "body.deeper: the plan names it"),
        ({"layer": "bn1"}, UnsupportedError, "bn1: BatchNorm2d"),
        ({"method": "cp"}, ConfigError, "unknown method 'cp'"),
        ({"rank": (999, 1)}, ConfigError, r"rank \(999, 1\)"),
    ],
)
def test_a_plan_of_another_model_is_refused(net, made, change, kind, message):
    step = next(p for p in made.layers if p.layer == "body")
    wrong = msgspec.structs.replace(made, layers=(msgspec.structs.replace(step, **change),))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kind, match=message):
        decompose(net, wrong)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_replace_works_at_every_depth():
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 3))}))
    new = nn.Linear(2, 4)
    before = replace(model, "1.a.0", new)
    assert before.out_features == 3
    assert model.get_submodule("1.a.0") is new
    assert replace(model, "0", nn.Identity()).out_features == 2
