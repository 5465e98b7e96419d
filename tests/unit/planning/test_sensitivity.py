"""Laws of the measured loss increase of replacing a layer, and of its cache."""

import copy

import pytest
import torch
from support.networks import digits

from edgecompress.factorizations.fitting import fit_layers
from edgecompress.factorizations.parallel import FactorizationJob
from edgecompress.network.batchnorm import reestimate_batchnorm
from edgecompress.network.outputs import divergence
from edgecompress.network.surgery import forward, replace_module
from edgecompress.planning import sensitivity
from edgecompress.planning.fitted_candidates import find_candidates, methods_to_try


@pytest.fixture(scope="module")
def candidates(net, stats):
    return find_candidates(net, stats, methods_to_try("auto", None, measured=False), multiple=2).candidates


def test_a_shift_that_batchnorm_reestimation_removes_does_not_count_as_loss(net, candidates):
    """The same network with other running averages has the same losses, and its averages stay unchanged."""
    inputs = (digits()[0].inputs[:128],)
    other = copy.deepcopy(net)
    other.bn1.running_mean += 1
    other.bn2.running_var *= 3
    before = copy.deepcopy(other.state_dict())
    assert sensitivity.measure_losses(other, candidates, inputs) == sensitivity.measure_losses(net, candidates, inputs)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_a_loss_equals_that_of_the_network_with_reestimated_batchnorm(net, candidates):
    """In a layer before a BatchNorm, the loss nearly equals that after re-estimation and is far below that without."""
    inputs = (digits()[0].inputs[:512],)
    losses = sensitivity.measure_losses(net, candidates, inputs)
    probe = sensitivity.coarse_probes(candidates["body"])[0]
    job = FactorizationJob("body", net.body, probe.method, probe.rank, dict(probe.options))
    trial = copy.deepcopy(net)
    replace_module(trial, "body", fit_layers(net, [job])[0].compact)
    shifted = float(divergence(forward(trial, inputs), forward(net, inputs)))
    both = [copy.deepcopy(net), trial]
    for model in both:
        reestimate_batchnorm(model, [inputs])
    repaired = float(divergence(forward(both[1], inputs), forward(both[0], inputs)))
    assert losses["body", probe.method, probe.rank] == pytest.approx(repaired, rel=0.15)
    assert shifted > 1.5 * repaired


@pytest.mark.parametrize("samples", [1, 2, 3, 65])
def test_losses_can_be_measured_on_any_number_of_samples(net, candidates, samples):
    losses = sensitivity.measure_losses(net, candidates, (digits()[0].inputs[:samples],))
    assert all(loss >= 0 for loss in losses.values())


def test_a_probe_that_overflows_gets_the_maximal_loss_and_does_not_affect_others(net, candidates, monkeypatch):
    fit = sensitivity.fit_layers

    def overflowing(model, jobs, **given):
        assert all(bool(kept.isfinite().all()) for kept in model.state_dict().values())
        made = fit(model, jobs, **given)
        next(made[0].compact.parameters()).data.fill_(torch.inf)
        return made

    monkeypatch.setenv("EDGECOMPRESS_CACHE", "")
    monkeypatch.setattr(sensitivity, "fit_layers", overflowing)
    monkeypatch.setattr(sensitivity, "MAX_HELD_PARAMS", 1)  # one probe at a time
    losses = sensitivity.measure_losses(net, candidates, (digits()[0].inputs[:64],), data_aware=True)
    assert max(losses.values()) == pytest.approx(sensitivity.MAX_LOSS)
    assert all(kept.isfinite().all() for kept in net.state_dict().values())


# The cache of losses


class Counted:
    """A progress bar that counts measurements."""

    def __init__(self):
        self.total = 0

    def __call__(self, items, title, total):
        assert title.startswith("measuring sensitivity")
        self.total += total
        return items


@pytest.fixture
def measured(net, candidates, monkeypatch, tmp_path):
    """Return a function that measures losses and counts the measurements; its own cache holds the losses of `net` on 64 digits."""
    monkeypatch.setenv("EDGECOMPRESS_CACHE", str(tmp_path))
    inputs = (digits()[0].inputs[:64],)

    def measure(model=net, *, found=candidates, inputs=inputs, **options):
        bar = Counted()
        losses = sensitivity.measure_losses(model, found, inputs, track=bar, **options)
        return bar.total, losses

    assert measure()[0] > 0
    return measure


def test_losses_of_a_network_are_measured_once(measured, candidates, monkeypatch):
    total, losses = measured()
    assert total == 0
    monkeypatch.setenv("EDGECOMPRESS_CACHE", "")
    again, fresh = measured()
    assert again > 0
    assert losses == fresh


def test_probes_shared_with_an_earlier_plan_are_not_measured_again(measured, candidates):
    assert measured(found={"body": candidates["body"]})[0] == 0
    fewer = {name: found[1:] if name == "body" else found for name, found in candidates.items()}
    assert 0 < measured(found=fewer)[0] < measured(found=fewer, data_aware=True)[0]


@pytest.mark.parametrize("what", ["weights", "inputs", "code", "data-aware"])
def test_losses_of_another_network_or_other_inputs_are_measured(what, net, measured):
    other = copy.deepcopy(net)
    if what == "weights":
        other.body.weight.data[0, 0, 0, 0] += 1e-3
    if what == "code":
        other.register_forward_hook(lambda _, __, y: 2 * y)
    given = {"inputs": {"inputs": (digits()[0].inputs[64:128],)}, "data-aware": {"data_aware": True}}.get(what, {})
    assert measured(other, **given)[0] > 0


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b.replace(b"0.0", b"0.1"), lambda b: b"", lambda b: b"[1, 2]"])
def test_a_damaged_loss_file_is_not_used(damage, measured, tmp_path):
    losses = measured()[1]
    (path,) = (tmp_path / "losses").rglob("*.json")
    path.write_bytes(damage(path.read_bytes()))
    total, again = measured()
    assert total > 0
    assert again == losses


def test_a_loss_file_of_another_network_under_this_name_is_not_used(net, measured, tmp_path):
    (path,) = (tmp_path / "losses").rglob("*.json")
    other = copy.deepcopy(net)
    other.body.weight.data *= 0.5
    measured(other)
    (theirs,) = set((tmp_path / "losses").rglob("*.json")) - {path}
    theirs.replace(path)
    assert measured()[0] > 0


def test_a_loss_cache_that_cannot_be_written_does_not_fail_a_plan(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECOMPRESS_CACHE", str(tmp_path / "file"))
    assert measured()[0] > 0
