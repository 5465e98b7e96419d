"""Laws of several stages: their schedule, restoring dense layers, and plans that each continue from the stage before."""

import copy

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.factorization_layers import accepts, build_case, factorize_case
from support.networks import digits
from support.stages import never_more
from support.trained_net import IMAGE
from torch import nn

from edgecompress.factorizations import METHODS
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.surgery import forward
from edgecompress.planning import stages
from edgecompress.planning.allocators import ALLOCATORS
from edgecompress.planning.candidates import Candidate
from edgecompress.planning.constraints import Constraint, stage_budget
from edgecompress.planning.plan import plan
from edgecompress.planning.stages import Stage, lower_ranks, remaining_fraction
from edgecompress.records import Budget, LayerPlan

# The schedule

shares = st.floats(0.01, 1)


@given(st.integers(1, 6), shares, shares)
def test_each_stage_saves_the_fraction_of_what_remains_and_the_last_one_all(of, weakening, final):
    asked = Budget(macs_ratio=final, speedup=1 / final)
    macs = Constraint("macs_ratio", "", "MACs", {}, dense=100.0, rest=0.0, total=100 * final)
    time = Constraint("speedup", "", "ms", {}, dense=7.0, rest=0.0, total=7 * final)
    shares = [1 - remaining_fraction(number, of, weakening) for number in range(1, of + 1)]
    made = [1.0, *(stage_budget(asked, [macs, time], share).macs_ratio for share in shares)]
    for number in range(1, of):
        assert made[number - 1] - made[number] == pytest.approx(weakening * (made[number - 1] - final), abs=1e-12)
    assert made[-1] == pytest.approx(final)
    assert made == sorted(made, reverse=True)
    assert [stage_budget(asked, [macs, time], share).speedup for share in shares] == pytest.approx([1 / ratio for ratio in made[1:]])


@given(st.integers(2, 6), shares)
def test_an_earlier_stage_does_not_depend_on_the_number_of_stages(of, weakening):
    """So a run that gets one more stage continues from the stages it has."""
    assert [remaining_fraction(n, of, weakening) for n in range(1, of)] == [remaining_fraction(n, of + 3, weakening) for n in range(1, of)]


@pytest.mark.parametrize(
    ("rank", "params", "macs", "options", "kept"),
    [
        ((4, 4), 80, 80, {}, True),
        ((4, 8), 80, 80, {}, True),
        ((8, 8), 80, 80, {}, False),  # the present form is a candidate of its own
        ((4, 9), 80, 80, {}, False),
        ((4, 4), 101, 80, {}, False),
        ((4, 4), 80, 101, {}, False),
        ((4, 4), 80, 80, {"slices": 4}, False),
    ],
)
def test_a_factorized_layer_may_only_get_a_lower_rank_and_cost(rank, params, macs, options, kept):
    now = Candidate("tucker2", (8, 8), 100, 100, 0.0)
    assert bool(lower_ranks([Candidate("tucker2", rank, params, macs, 0.5, options=options)], now)) == kept
    assert not lower_ranks([Candidate("cp3", (4,), 1, 1, 0.5)], now)


# Restoring dense layers

RESTORED_LAYERS = [
    "linear",
    "linear-no-bias-wide",
    "1x1-grouped-stride-2",
    "3x3-reflect",
    "3x5-stride-dilation-replicate",
    "conv1d",
    "transposed2d",
]


@pytest.mark.filterwarnings("ignore::edgecompress.factorizations.FitWarning")
@pytest.mark.parametrize("name", RESTORED_LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_restored_dense_layer_computes_the_same_as_its_factors(method, name):
    if not accepts(method, name):
        return  # refusals are tested with the factorizations
    case, compact = build_case(name), with_moved_weights(factorize_case(method, name))
    made = stages.restore_dense(nn.Sequential(compact), nn.Sequential(case.layer), [layer_plan("0", method, ())])
    assert (type(made[0]), str(made[0])) == (type(case.layer), str(case.layer))
    torch.testing.assert_close(made(case.x), compact(case.x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made(case.x), case.layer(case.x), atol=0.01)  # training has moved the factors, and the bias


@torch.no_grad()
def with_moved_weights(network):
    """Return a copy whose weights have moved as if it had been trained."""
    made = copy.deepcopy(network)
    torch.manual_seed(0)
    for p in made.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return made


def layer_plan(layer, method, rank):
    return LayerPlan(
        layer=layer, method=method, rank=rank, macs_before=2, macs=1, params_before=2, params=1, relative_error=0, loss_increase=0
    )


# Plans, one after another


@pytest.fixture(scope="module")
def inputs():
    return (digits()[0].inputs[:128],)


def network_after_stage(model, before, made):
    """Return the network after a stage, without any training."""
    changed = stages.changed_layers(made, before)
    network, _ = decompose(stages.restore_dense(model[0], model[1], stages.previous_forms(before, changed)), changed)
    return network.eval()


@pytest.mark.parametrize("allocator", ["latency", "uniform"])
def test_no_layer_gets_a_lower_rank_than_in_the_final_plan(net, inputs, allocator):
    """Later stages could not give back ranks below those of the final plan, and the budget might become unreachable."""
    stats = analyze(net, IMAGE, measure=False)
    asked = {"macs_ratio": 0.2, "allocator": allocator, "inputs": inputs, "rank_multiple": 2}
    final = {s.layer: s for s in plan(net, stats, **asked).layers}
    for share in (0.2, 0.5, 0.9):
        made = plan(net, stats, **asked, stage=Stage(share)).layers
        assert made
        for s in made:
            assert s.method == final[s.layer].method
            assert all(r >= least for r, least in zip(s.rank, final[s.layer].rank, strict=True)), s.layer
        assert any(s.rank != final[s.layer].rank for s in made) or len(made) < len(final)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_ranks_and_costs_never_rise_and_the_last_budget_is_kept(net, inputs, allocator):
    stats, network, before, was = analyze(net, IMAGE, measure=False), net, (), None
    for number in (1, 2, 3):
        made = plan(
            stages.restore_dense(network, net, before),
            stats,
            macs_ratio=0.25,
            allocator=allocator,
            inputs=inputs,
            rank_multiple=2,
            stage=Stage(remaining_fraction(number, 3, 0.5), stages.current_forms(before)),
        )
        assert made.macs <= (0.25 + 0.75 * remaining_fraction(number, 3, 0.5)) * stats.macs
        assert made.budget.macs_ratio == pytest.approx(0.25 + 0.75 * remaining_fraction(number, 3, 0.5), abs=1e-4)
        network = network_after_stage((network, net), before, made)
        counted = analyze(network, IMAGE, measure=False)
        assert (counted.macs, counted.params) == (made.macs, made.params)
        if was is not None:
            never_more(was, made)
        before, was = made.layers, made
    assert made.macs < stats.macs


def test_full_ranks_preserve_the_function_of_the_fine_tuned_network(net, inputs):
    method = {"stem": "tucker2", "body": "tucker2", "mix": "svd", "head": "svd"}
    full = [layer_plan(name, m, METHODS[m].max_rank(net.get_submodule(name), METHODS[m].Options())) for name, m in method.items()]
    whole = msgspec.structs.replace(plan(net, analyze(net, IMAGE, measure=False), macs_ratio=1.0), layers=tuple(full), skipped=())
    network = network_after_stage((net, net), (), whole)
    torch.testing.assert_close(forward(network, inputs), forward(net, inputs), rtol=1e-4, atol=1e-4)
    network = with_moved_weights(network)
    lower = [layer_plan(s.layer, s.method, tuple(r - 1 for r in s.rank)) for s in full]  # as if it had been of another rank
    again = network_after_stage((network, net), lower, whole)
    assert all(again.get_submodule(name) is not network.get_submodule(name) for name in method)
    torch.testing.assert_close(forward(again, inputs), forward(network, inputs), rtol=1e-4, atol=1e-4)


def test_with_a_bound_on_accuracy_every_stage_keeps_it_and_ranks_never_rise(net, inputs):
    stats, network, before, was = analyze(net, IMAGE, measure=False), net, (), None
    judged = ((digits()[0].inputs[400:1400],), None)
    for number, bound in ((1, 4.0), (2, 12.0)):
        made = plan(
            stages.restore_dense(network, net, before),
            stats,
            budget=Budget(max_drop=bound),
            inputs=inputs,
            judged=judged,
            rank_multiple=2,
            stage=Stage(remaining_fraction(number, 2, 0.5), stages.current_forms(before)),
        )
        lost = float(made.notes[-1].split(" points")[0].rpartition(" ")[2])
        assert 0 <= lost <= bound
        network = network_after_stage((network, net), before, made)
        if was is not None:
            never_more(was, made)
            assert made.macs < was.macs
        before, was = made.layers, made
    assert was.macs < stats.macs
