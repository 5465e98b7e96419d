"""Laws of the planner: budgets, fixed choices, refusals and the minimum agreement."""

import copy
import re

import msgspec
import pytest
import torch
from support.networks import Net, digits, trained
from support.trained_net import IMAGE
from torch import nn
from torch.nn import functional as F

from edgecompress import targets
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import METHODS
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.counting import params_of
from edgecompress.network.surgery import forward
from edgecompress.planning.allocators import ALLOCATORS
from edgecompress.planning.candidates import DENSE
from edgecompress.planning.plan import plan
from edgecompress.records import CompressionPlan, from_json


def test_a_plan_keeps_its_budget_and_adds_up(net, stats, inputs):
    for ratio in (0.35, 0.5, 0.8, 1.0):
        made = plan(net, stats, macs_ratio=ratio, inputs=inputs, rank_multiple=4)
        assert made.macs <= ratio * made.macs_before
        assert {p.layer for p in made.layers} | {s.layer for s in made.skipped} == {layer.name for layer in stats.layers}
        assert all(s.reason for s in made.skipped)
        assert made.macs == sum(p.macs for p in made.layers) + sum(s.macs for s in made.skipped)
        real, _ = decompose(net, made)
        after = analyze(real, IMAGE, measure=False)
        assert (after.params, after.macs) == (made.params, made.macs)


def test_a_layer_that_is_low_rank_already_is_reduced_most(inputs):
    """The kernel of `body` is low-rank, so factorizing it costs no loss; other layers must keep more of their MACs."""
    model = trained(Net(), epochs=1)
    model.body = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    with torch.no_grad():
        core = torch.randn(2, 2, 3, 3)
        model.body.weight.copy_(torch.einsum("oa,abhw,bi->oihw", torch.randn(32, 2), core, torch.randn(2, 16)) / 20)
    made = plan(model, analyze(model, IMAGE, measure=False), macs_ratio=0.6, inputs=inputs, rank_multiple=2)
    ratios = {p.layer: p.macs / p.macs_before for p in made.layers} | {s.layer: 1.0 for s in made.skipped}
    assert ratios["body"] < 1 / 3
    assert max(ratios.values()) > 2 * ratios["body"]
    assert len({round(r, 2) for r in ratios.values()}) > 1


def test_layers_of_a_trained_network_get_different_ratios(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.4, inputs=inputs, rank_multiple=2)
    ratios = {round(p.macs / p.macs_before, 2) for p in made.layers} | ({1.0} if made.skipped else set())
    assert len(ratios) > 1


def test_measured_losses_give_a_better_plan_than_relative_errors(net, stats, inputs):
    """At the same budget, a plan by measured losses changes the network's outputs no more than one by relative errors."""
    held_out = (digits()[1].inputs,)
    (reference,) = forward(net, held_out)
    gap = lambda made: float((forward(decompose(net, made)[0].eval(), held_out)[0] - reference).square().mean())  # noqa: E731
    measured, blind = (plan(net, stats, macs_ratio=0.5, inputs=x, rank_multiple=2) for x in (inputs, None))
    assert gap(measured) <= gap(blind) * 1.05


def test_planning_leaves_the_model_unchanged(net, stats, inputs):
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    plan(net, stats, macs_ratio=0.5, inputs=inputs, guarded=True, min_fidelity=0.95)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert modes == [m.training for m in net.modules()]


def test_planning_is_reproducible(net, stats, inputs):
    assert plan(net, stats, macs_ratio=0.5, inputs=inputs) == plan(net, stats, macs_ratio=0.5, inputs=inputs)


@pytest.mark.parametrize("with_data", [True, False])
def test_a_macs_ratio_of_1_leaves_all_layers_dense(net, stats, inputs, with_data):
    made = plan(net, stats, macs_ratio=1.0, inputs=inputs if with_data else None, rank_multiple=2)
    assert (made.layers, made.macs) == ((), made.macs_before)


def test_a_budget_that_asks_for_nothing_measures_nothing(net, stats, inputs):
    said: list[str] = []
    plan(net, stats, macs_ratio=1.0, inputs=inputs, track=lambda items, what, total: said.append(what) or items)
    assert "measuring sensitivity" not in said


def test_a_plan_without_data_says_so(net, stats):
    assert plan(net, stats, macs_ratio=0.5).notes == ("no data: sensitivities are squared relative errors, every layer weighed the same",)


@pytest.mark.parametrize("multiple", [2, 8])
def test_a_macs_ratio_out_of_reach_is_refused_with_one_that_can_be_reached(net, stats, multiple):
    with pytest.raises(ConfigError, match=r"MACs ratio 0\.01: the lowest this network reaches is 0\.\d+; ask for at least") as refusal:
        plan(net, stats, macs_ratio=0.01, rank_multiple=multiple)
    lowest, enough = map(float, re.findall(r"\d+\.\d+", str(refusal.value))[1:])
    made = plan(net, stats, macs_ratio=enough, rank_multiple=multiple)
    assert lowest == pytest.approx(made.macs / made.macs_before, abs=0.011)
    assert made.macs <= enough * made.macs_before + 1


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, float("nan")])
def test_a_ratio_out_of_range_is_refused(net, stats, ratio):
    with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
        plan(net, stats, macs_ratio=ratio)


def test_fixed_choices_are_kept_within_the_budget(net, stats, inputs):
    fixed = {"body": (DENSE, ()), "mix": ("svd", (3,))}
    made = plan(net, stats, macs_ratio=0.95, inputs=inputs, layers=fixed)
    assert {p.layer: (p.method, p.rank, p.why) for p in made.layers}["mix"] == ("svd", (3,), "as asked")
    assert {s.layer: s.reason for s in made.skipped}["body"] == "kept dense as asked"
    assert made.macs <= 0.95 * made.macs_before


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        ({"bodi": ("svd", (1,))}, ConfigError, "bodi: no such layer; did you mean body"),
        ({"zzz": ("svd", (1,))}, ConfigError, "zzz: no such layer; see `edgecompress analyze`"),
        ({"body": ("svd", (1,))}, UnsupportedError, "body: kernel 3×3, svd takes Linear and kernels of size 1; .*; leave it out"),
        ({"body": ("tucker2", (4,))}, ConfigError, r"body: rank \(4,\) for tucker2"),
        ({"body": ("tucker2", (4, 99))}, ConfigError, r"body: rank \(4, 99\) for tucker2"),
        ({"body": ("cp", (4,))}, ConfigError, "body: unknown method 'cp'; choose from"),
        ({"body": ("grouped_svd", (4,), {"parts": 2})}, ConfigError, "body: grouped_svd: unknown option 'parts'; choose from slices"),
        ({"body": ("grouped_svd", (4,), {"slices": 3})}, ConfigError, "body: slices=3: does not divide the 16 input channels"),
        ({"body": ("grouped_svd", (4,), {"slices": "two"})}, ConfigError, "body: grouped_svd: Expected `int`, got `str`"),
    ],
)
def test_an_impossible_fixed_choice_is_refused(net, stats, layers, kind, message):
    with pytest.raises(kind, match=message):
        plan(net, stats, macs_ratio=0.9, layers=layers)


def test_an_unknown_method_is_refused(net, stats):
    with pytest.raises(ConfigError, match=f"unknown method 'magic'; choose from {', '.join(METHODS)}"):
        plan(net, stats, method="magic")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("cp3", {"sweep": 3}, "cp3: unknown option 'sweep'; choose from seed, starts, sweeps, tolerance"),
        ("svd", {"seed": 3}, "svd: unknown option 'seed'; it has none"),
        ("auto", {"seed": 3}, "method auto: takes no options; name the method they are for"),
    ],
)
def test_an_option_a_method_does_not_have_is_refused(net, stats, method, options, message):
    with pytest.raises(ConfigError, match=message):
        plan(net, stats, macs_ratio=0.9, method=method, options=options)


def test_options_of_a_method_reach_its_factors_and_layers_they_do_not_fit_are_skipped(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.9, method="grouped_svd", options={"slices": 4}, inputs=inputs)
    assert made.layers
    assert all((p.method, p.options) == ("grouped_svd", {"slices": 4}) for p in made.layers)
    real, _ = decompose(net, msgspec.json.decode(msgspec.json.encode(made), type=type(made)))
    assert {p.layer: real.get_submodule(p.layer)[0].groups for p in made.layers} == {p.layer: 4 for p in made.layers}
    with pytest.raises(ConfigError, match=r"0\.9: no layer can be factorized, stem because one input channel .*; take another method or"):
        plan(net, stats, macs_ratio=0.9, method="grouped_svd", options={"slices": 3}, inputs=inputs)
    made = plan(net, stats, macs_ratio=1.0, method="grouped_svd", options={"slices": 3}, inputs=inputs)
    assert {s.layer: s.reason for s in made.skipped}["body"] == "slices=3: does not divide the 16 input channels of a group; take a divisor"


def test_a_plan_of_an_earlier_version_has_no_options(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.5, inputs=inputs)
    old = msgspec.to_builtins(made)
    for layer in old["layers"]:
        del layer["options"]
    assert from_json(msgspec.json.encode(old), CompressionPlan, source="plan.json") == made


def test_the_note_of_a_fit_that_fell_short_is_in_the_plan(net, stats):
    hasty = {"starts": 1, "sweeps": 2}
    made = plan(net, stats, macs_ratio=0.95, layers={"body": ("cp3", (20,), hasty)})
    (step,) = (p for p in made.layers if p.layer == "body")
    assert re.match(r"as asked; ALS .*error.*sensitivity", step.why), step.why
    assert decompose(net, made)[1].notes == (f"body: {step.why.removeprefix('as asked; ')}",)


@pytest.mark.parametrize("choice", [("svd", (2,)), ("svd", (2,), {})])
def test_a_form_for_a_tied_layer_is_refused_with_the_name_of_the_other(choice):
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    model[2].weight = model[0].weight
    stats = analyze(model, (torch.zeros(1, 32),), measure=False)
    with pytest.raises(UnsupportedError, match=r"^2: its weight is shared with 0; leave it dense$"):
        plan(model, stats, macs_ratio=0.9, layers={"2": choice})
    assert plan(model, stats, macs_ratio=1.0, layers={"2": ("dense", ())}).skipped[1].reason == "kept dense as asked"


def test_a_form_for_the_whole_model_is_refused():
    model = nn.Linear(32, 32)
    with pytest.raises(UnsupportedError, match=r"^layer: it is the whole model; wrap it in a module; leave it dense$"):
        plan(model, analyze(model, (torch.zeros(1, 32),), measure=False), layers={"": ("svd", (2,))})


def test_a_layer_without_values_is_skipped_with_the_reason_and_refused_when_it_was_fixed():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    nn.init.zeros_(model[0].weight)
    stats = analyze(model, (torch.zeros(1, 32),), measure=False)
    made = plan(model, stats, macs_ratio=0.9)
    assert [(s.layer, s.reason) for s in made.skipped] == [("0", "its weights are all zero")]
    with pytest.raises(ConfigError, match=r"^0: its weights are all zero; remove the layer or load a trained checkpoint$"):
        plan(model, stats, macs_ratio=0.9, layers={"0": ("svd", (2,))})
    empty = plan(model.to("meta"), stats, macs_ratio=1.0)
    assert {s.reason for s in empty.skipped} == {"it is on the meta device and has no values"}


def test_a_data_aware_plan_is_measured_on_data_aware_factors(net, stats, inputs):
    aware, plain = (plan(net, stats, macs_ratio=0.6, method="channel_svd", inputs=inputs, data_aware=on) for on in (True, False))
    loss = {p.layer: (p.rank, p.loss_increase) for p in plain.layers}
    alike = [(p.loss_increase, loss[p.layer][1]) for p in aware.layers if loss.get(p.layer, ())[:1] == (p.rank,)]
    assert alike
    assert all(better < worse for better, worse in alike)


def test_one_method_for_all_skips_what_it_cannot_take(net, stats):
    made = plan(net, stats, macs_ratio=0.99, method="svd")
    assert {p.method for p in made.layers} <= {"svd"}
    assert {s.layer: s.reason for s in made.skipped}["body"].startswith("kernel 3×3, svd takes Linear and kernels of size 1")


def test_tied_layers_are_skipped_with_the_name_of_the_other():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    model[2].weight = model[0].weight
    made = plan(model, analyze(model, (torch.zeros(1, 32),), measure=False), macs_ratio=0.9)
    assert {s.layer: s.reason for s in made.skipped} == {"0": "its weight is shared with 2", "2": "its weight is shared with 0"}
    assert [p.layer for p in made.layers] == ["4"]


def test_a_model_that_is_one_layer_is_left_dense_with_the_reason():
    model = nn.Linear(32, 32)
    made = plan(model, analyze(model, (torch.zeros(1, 32),), measure=False), macs_ratio=1.0)
    assert not made.layers
    assert "whole model" in made.skipped[0].reason


def test_a_network_without_layers_has_an_empty_plan():
    made = plan(nn.ReLU(), analyze(nn.ReLU(), (torch.zeros(1, 3),), measure=False), macs_ratio=0.5)
    assert (made.layers, made.skipped, made.macs) == ((), (), 0)


def test_costs_of_a_layer_called_on_maps_of_several_sizes_are_exact():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            return torch.cat([self.head(level).flatten(2) for level in (x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4))], 2)

    model, x = Pyramid(), (torch.zeros(1, 16, 8, 8),)
    made = plan(model, analyze(model, x, measure=False), macs_ratio=0.5)
    assert made.layers
    assert analyze(decompose(model, made)[0], x, measure=False).macs == made.macs


def test_a_minimum_fidelity_reduces_the_savings_with_a_note(net, stats, inputs):
    asked = plan(net, stats, macs_ratio=0.3, inputs=inputs, rank_multiple=2)
    made = plan(net, stats, macs_ratio=0.3, inputs=inputs, rank_multiple=2, guarded=True, min_fidelity=0.97)
    assert made.macs > asked.macs
    said = r"MACs ratio 0\.3 was refused: without fine-tuning output_0 \(logits\) keeps [\d.]+% of the answers, 97% must be kept"
    assert re.search(said, made.notes[-1])


def test_a_minimum_fidelity_accepts_a_harmless_plan(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.99, inputs=inputs, rank_multiple=2, guarded=True, min_fidelity=0.5)
    assert made == plan(net, stats, macs_ratio=0.99, inputs=inputs, rank_multiple=2)


def test_the_note_on_agreement_counts_layers_fixed_by_hand(net, stats, inputs):
    fixed = {"stem": ("tucker2", (1, 1)), "body": ("tucker2", (1, 1)), "mix": ("svd", (1,))}
    made = plan(net, stats, macs_ratio=0.5, inputs=inputs, layers=fixed, guarded=True, min_fidelity=0.99)
    assert {p.layer for p in made.layers} >= set(fixed)
    assert "keeps 100%" not in made.notes[-1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_inputs_for_a_minimum_agreement_give_a_plan_without_decomposed_layers(net, stats, inputs, n):
    made = plan(net, stats, macs_ratio=0.5, inputs=(inputs[0][:n],), guarded=True, min_fidelity=0.9)
    assert not made.layers
    assert f"{n} inputs cannot show whether the network survives it" in made.notes[-1]


@pytest.mark.parametrize("n", [4, 130, 131])
def test_a_minimum_agreement_works_with_any_number_of_inputs_and_batchnorm1d(n):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()
    assert plan(
        model,
        analyze(model, (torch.zeros(1, 16),), measure=False),
        macs_ratio=0.5,
        inputs=(torch.randn(n, 16),),
        guarded=True,
        min_fidelity=0.99,
    )


def test_a_network_whose_outputs_are_not_finite_is_refused(net, stats, inputs):
    with pytest.raises(ConfigError, match="outputs on the planning inputs hold NaN or infinity"):
        plan(net, stats, macs_ratio=0.5, inputs=(inputs[0] * float("inf"),))


def test_params_of_a_plan_equal_those_of_the_decomposed_network(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.5, inputs=inputs)
    assert params_of(decompose(net, made, fit=False)[0]) == made.params


def test_a_plan_survives_json(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.5, inputs=inputs)
    assert msgspec.json.decode(msgspec.json.encode(made), type=type(made)) == made


@pytest.mark.parametrize("name", ALLOCATORS)
def test_every_allocator_keeps_the_budget(net, stats, inputs, name):
    made = plan(net, stats, macs_ratio=0.5, inputs=inputs, allocator=name)
    assert made.layers
    assert made.macs <= 0.5 * made.macs_before


def test_the_command_line_offers_the_same_allocators():
    assert tuple(ALLOCATORS) == targets.ALLOCATORS


def test_vbmf_refuses_a_method_whose_ranks_it_cannot_estimate(net, stats):
    with pytest.raises(UnsupportedError, match="cp3"):
        plan(net, stats, macs_ratio=0.5, method="cp3", allocator="vbmf")
