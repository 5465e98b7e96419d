"""Laws of what replacing a layer costs."""

import copy

import pytest
import torch
from support.networks import digits

from edgecompress.batchnorm import reestimate
from edgecompress.distillation import divergence
from edgecompress.factorizations.parallel import Job
from edgecompress.models import forward, replace
from edgecompress.planning import sensitivity
from edgecompress.planning.choices import candidates_of, forms_of
from edgecompress.planning.factors import factors_of


@pytest.fixture(scope="module")
def candidates(net, stats):
    return candidates_of(net, stats, forms_of("auto", None, measured=False), multiple=2).candidates


def test_what_reestimating_batchnorm_repairs_costs_nothing(net, candidates):
    """The same network with other running averages gets the same losses, and keeps its averages."""
    inputs = (digits()[0].inputs[:128],)
    other = copy.deepcopy(net)
    other.bn1.running_mean += 1
    other.bn2.running_var *= 3
    before = copy.deepcopy(other.state_dict())
    assert sensitivity.measure(other, candidates, inputs) == sensitivity.measure(net, candidates, inputs)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_a_loss_is_that_of_the_network_with_batchnorm_reestimated(net, candidates):
    """Within the noise of statistics of batches, and far from the loss without, in the layer that BatchNorm follows."""
    inputs = (digits()[0].inputs[:512],)
    losses = sensitivity.measure(net, candidates, inputs)
    probe = sensitivity.first(candidates["body"])[0]
    job = Job("body", net.body, probe.method, probe.rank, dict(probe.options))
    trial = copy.deepcopy(net)
    replace(trial, "body", factors_of(net, [job])[0].compact)
    shifted = float(divergence(forward(trial, inputs), forward(net, inputs)))
    both = [copy.deepcopy(net), trial]
    for model in both:
        reestimate(model, [inputs])
    repaired = float(divergence(forward(both[1], inputs), forward(both[0], inputs)))
    assert losses["body", probe.method, probe.rank] == pytest.approx(repaired, rel=0.15)
    assert shifted > 1.5 * repaired


@pytest.mark.parametrize("samples", [1, 2, 3, 65])
def test_any_number_of_samples_will_do(net, candidates, samples):
    losses = sensitivity.measure(net, candidates, (digits()[0].inputs[:samples],))
    assert all(loss >= 0 for loss in losses.values())


def test_a_probe_that_overflows_is_the_worst_there_is_and_leaves_nothing_behind(net, candidates, monkeypatch):
    fit = sensitivity.factors_of

    def overflowing(model, jobs, **given):
        assert all(bool(kept.isfinite().all()) for kept in model.state_dict().values())
        made = fit(model, jobs, **given)
        next(made[0].compact.parameters()).data.fill_(torch.inf)
        return made

    monkeypatch.setattr(sensitivity, "factors_of", overflowing)
    monkeypatch.setattr(sensitivity, "HELD", 1)  # one probe at a time
    losses = sensitivity.measure(net, candidates, (digits()[0].inputs[:64],), data_aware=True)
    assert max(losses.values()) == pytest.approx(sensitivity.CEILING)
    assert all(kept.isfinite().all() for kept in net.state_dict().values())
