"""Applying a plan: the decomposed network, its errors and its use of inputs."""

import copy

import msgspec
import pytest
import torch
from support.networks import Net
from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import fitting
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.surgery import is_decomposed, replace_module
from edgecompress.network.weights import fingerprint
from edgecompress.planning.plan import plan

IMAGE = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def tucker2_plan(net):
    return plan(net, analyze(net, (IMAGE[:1],), measure=False), macs_ratio=0.5, rank_multiple=4)


@pytest.fixture
def data_aware_plan(net):
    """Return a plan of data-aware methods."""
    chosen = {"body": ("channel_svd", (6,)), "mix": ("svd", (5,)), "head": ("svd", (3,))}
    return plan(net, analyze(net, (IMAGE[:1],), measure=False), macs_ratio=1.0, layers=chosen)


def test_the_original_model_stays_unchanged(net, tucker2_plan):
    before, y = fingerprint(net), net(IMAGE)
    compact, _ = decompose(net, tucker2_plan)
    with torch.no_grad():
        for p in compact.parameters():
            p.zero_()
    assert fingerprint(net) == before
    assert torch.equal(net(IMAGE), y)
    assert is_decomposed(compact)
    assert not is_decomposed(net)


def test_measured_errors_equal_the_planned_ones(net, tucker2_plan):
    compact, result = decompose(net, tucker2_plan)
    assert result.relative_errors == pytest.approx({p.layer: p.relative_error for p in tucker2_plan.layers})
    assert result.mean_relative_error == pytest.approx(sum(p.relative_error for p in tucker2_plan.layers) / len(tucker2_plan.layers))
    after = analyze(compact, (IMAGE[:1],), measure=False)
    assert (result.params, result.macs) == (tucker2_plan.params, tucker2_plan.macs) == (after.params, after.macs)


def test_a_saved_state_loads_into_unfitted_factors_bit_for_bit(net, tucker2_plan):
    fitted, _ = decompose(net, tucker2_plan)
    empty, result = decompose(net, tucker2_plan, fit=False)
    empty.load_state_dict(fitted.state_dict(), strict=True)
    assert torch.equal(empty.eval()(IMAGE), fitted.eval()(IMAGE))
    assert result.relative_errors == {p.layer: p.relative_error for p in tucker2_plan.layers}


def test_an_empty_plan_gives_an_equal_copy(net, tucker2_plan):
    empty = msgspec.structs.replace(tucker2_plan, layers=())
    compact, result = decompose(net, empty)
    assert compact is not net
    assert torch.equal(compact(IMAGE), net(IMAGE))
    assert (result.relative_errors, result.mean_relative_error) == ({}, 0.0)


def test_a_plan_that_names_a_tied_layer_is_refused_with_the_name_of_the_other(net, data_aware_plan):
    net.again = nn.Conv2d(32, 32, 1)
    net.again.weight = net.mix.weight
    with pytest.raises(UnsupportedError, match=r"^mix: its weight is shared with again; leave it dense or give each its own$"):
        decompose(net, data_aware_plan)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_fitting_to_inputs_lowers_the_output_error_and_keeps_the_model_unchanged(net, data_aware_plan, training):
    inputs = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reader, seen = copy.deepcopy(net), {}
    for step in data_aware_plan.layers:
        reader.get_submodule(step.layer).register_forward_hook(lambda m, args, y, name=step.layer: seen.update({name: (args[0], y)}))
    reader(inputs)
    before = fingerprint(net.train(training))
    (aware, read), (plain, unread) = (decompose(net, data_aware_plan, inputs=x) for x in ((inputs,), None))
    assert fingerprint(net) == before
    assert all(m.training is training for m in net.modules())
    assert len(seen) == 3
    for name, (x, y) in seen.items():
        lost = [float((form.get_submodule(name)(x) - y).square().sum()) for form in (aware, plain)]
        assert lost[0] < lost[1]
        assert read.relative_errors[name] > unread.relative_errors[name]  # of the weight, which is not what it minimised


def test_inputs_do_not_change_methods_that_are_not_data_aware(net, tucker2_plan):
    assert {p.method for p in tucker2_plan.layers} == {"tucker2"}
    with_inputs, without = (decompose(net, tucker2_plan, inputs=x)[0].state_dict() for x in ((IMAGE,), None))
    torch.testing.assert_close(with_inputs, without, rtol=0, atol=0)


def test_a_layer_whose_moments_take_too_much_memory_is_fitted_to_its_weight_with_a_note(net, data_aware_plan, monkeypatch):
    monkeypatch.setattr(fitting, "MAX_LAYER_MOMENTS_BYTES", 8 * 128**2 - 1)
    model, result = decompose(net, data_aware_plan, inputs=(IMAGE,))
    wide = [f"{name}: second moments of its input would take 0.0 GB, so it was fitted to its weight" for name in ("body", "head")]
    assert result.notes == tuple(wide)
    plain = decompose(net, data_aware_plan)[0].state_dict()
    assert {k.partition(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, plain[k])} == {"mix"}


def test_layers_whose_moments_exceed_memory_together_are_fitted_in_several_passes(net, data_aware_plan, monkeypatch):
    together = decompose(net, data_aware_plan, inputs=(IMAGE,))
    monkeypatch.setattr(fitting, "MAX_MOMENTS_BYTES", 1)
    apart = decompose(net, data_aware_plan, inputs=(IMAGE,))
    assert apart[1] == together[1]
    torch.testing.assert_close(apart[0].state_dict(), together[0].state_dict(), rtol=0, atol=0)


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
def test_a_plan_of_another_model_is_refused(net, tucker2_plan, change, kind, message):
    step = next(p for p in tucker2_plan.layers if p.layer == "body")
    wrong = msgspec.structs.replace(tucker2_plan, layers=(msgspec.structs.replace(step, **change),))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kind, match=message):
        decompose(net, wrong)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_replace_works_at_every_depth():
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 3))}))
    new = nn.Linear(2, 4)
    before = replace_module(model, "1.a.0", new)
    assert before.out_features == 3
    assert model.get_submodule("1.a.0") is new
    assert replace_module(model, "0", nn.Identity()).out_features == 2
