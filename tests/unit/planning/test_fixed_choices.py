"""Forms fixed by hand: the plan stores their options, and the run mode that was measured for them."""

import pytest
import torch
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.planning.plan import plan
from edgecompress.records import CompressionPlan, from_json, to_json


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 12)).eval()


@pytest.fixture(scope="module")
def stats(net):
    return analyze(net, (torch.zeros(1, 12),), measure=False)


@pytest.mark.slow
def fix_only(layer, choice):
    """Return the fixed choices that leave every other layer dense, so that none of them is fitted."""
    return dict.fromkeys(("0", "2", "4"), ("dense", ())) | {layer: choice}


@pytest.mark.parametrize(("layer", "rank", "run"), [("2", (1, 1), "chain"), ("0", (48, 32), "dense")])
def test_a_tensor_train_gets_the_run_mode_that_is_measured_faster(net, stats, layer, rank, run):
    made = plan(net, stats, macs_ratio=1.0, layers=fix_only(layer, ("tensor_train", rank)))
    (step,) = (one for one in made.layers if one.layer == layer)
    assert step.options == {"run": run}
    assert step.form == f"tensor_train run={run}"
    dense = 12 * 4096 if layer == "0" else 4096**2
    assert (step.macs == dense) == (run == "dense")


def test_a_run_mode_fixed_by_hand_is_not_measured(net, stats, monkeypatch):
    monkeypatch.setattr("edgecompress.factorizations.methods.tensor_train.faster_run_mode", None)  # a call would fail
    made = plan(net, stats, macs_ratio=1.0, layers=fix_only("2", ("tensor_train", (2, 2), {"run": "dense", "cores": 3})))
    assert {step.layer: step.form for step in made.layers}["2"] == "tensor_train run=dense cores=3"


def test_a_dense_run_mode_stores_few_parameters_and_loads_again(net, stats):
    made = plan(net, stats, macs_ratio=1.0, layers=fix_only("2", ("tensor_train", (4, 4), {"run": "dense"})))
    made = from_json(to_json(made), CompressionPlan, source="plan.json")
    compact, _ = decompose(net, made)
    assert sum(p.numel() for p in compact[2].parameters()) < 4096**2 / 100
    empty, _ = decompose(net, made, fit=False)
    empty.load_state_dict(compact.state_dict())
    x = torch.randn(3, 12)
    torch.testing.assert_close(empty(x), compact(x))


def test_options_that_do_not_fit_are_refused_with_the_layer(net, stats):
    with pytest.raises(ConfigError, match=r"tensor_train: unknown option 'core'; choose from cores"):
        plan(net, stats, macs_ratio=1.0, layers=fix_only("2", ("tensor_train", (4, 4), {"core": 3})))
