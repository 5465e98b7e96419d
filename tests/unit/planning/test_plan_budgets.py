"""Budgets of every kind: they are kept or refused with the nearest reachable value, and no chosen form is slower on the device."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.networks import Uneven, digits, trained
from support.trained_net import IMAGE

from edgecompress.errors import ConfigError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network import batches
from edgecompress.network.analyze import analyze
from edgecompress.network.batchnorm import record_statistics, reestimate_batchnorm
from edgecompress.network.outputs import top1
from edgecompress.network.surgery import forward
from edgecompress.planning import constraints, int8_loss
from edgecompress.planning.allocators import Offer, latency
from edgecompress.planning.int8_loss import measure_int8_losses
from edgecompress.planning.latencies import DeviceCosts, candidate_latencies
from edgecompress.planning.plan import plan
from edgecompress.records import Budget

WHOLE_MS = 2.0


def costs_by_rule(ms, whole_ms=WHOLE_MS):
    """Return latencies that the rule `ms(form, macs)` computes in place of a device."""
    return DeviceCosts("int8-static", "a board, a runtime, 1 thread", whole_ms, lambda wanted: [ms(w.form, w.macs) for w in wanted])


def ms_by_macs(form, macs):
    return 1e-5 * macs + 0.05


@pytest.mark.parametrize("layers_ms", [None, 0.5, 1.9, 3.0])
def test_layer_latencies_are_scaled_to_their_part_of_the_network_and_the_rest_is_the_remainder(layers_ms):
    net = Uneven()
    stats = analyze(net, IMAGE, measure=False)
    given = costs_by_rule(ms_by_macs)._replace(layers_ms=layers_ms)
    found = candidate_latencies(net, stats, {layer.name: () for layer in stats.layers}, given)
    alone = [ms_by_macs(None, layer.macs) for layer in stats.layers]
    layers = [found.dense_ms(layer.name) for layer in stats.layers]
    assert sum(layers) == pytest.approx(min(WHOLE_MS, sum(alone) if layers_ms is None else layers_ms))
    assert sum(layers) + found.rest_ms == pytest.approx(WHOLE_MS)
    assert [one / layers[0] for one in layers] == pytest.approx([one / alone[0] for one in alone])


# Several limits at once

numbers = st.floats(0.1, 10)
problems = st.integers(2, 4).flatmap(
    lambda layers: st.lists(
        st.lists(st.tuples(numbers, numbers, st.floats(0, 1)), min_size=2, max_size=4), min_size=layers, max_size=layers
    )
)


def constraint_at(rows, which, share):
    table = {str(i): [option[which] for option in row] for i, row in enumerate(rows)}
    least, most = (sum(f(row) for row in table.values()) for f in (min, max))
    return constraints.Constraint("macs_ratio", f"budget {which}", "MACs", table, most, 0.0, least + share * (most - least))


@given(problems, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_several_constraints_are_all_kept(rows, first, second):
    limits = [constraint_at(rows, 0, first), constraint_at(rows, 1, second)]
    offers = [[Offer(cost=0.0, loss=loss) for _, _, loss in row] for row in rows]
    picked = constraints.allocate_within(latency, offers, limits)
    within = [
        sum(row[i][2] for row, i in zip(rows, choice, strict=True))
        for choice in itertools.product(*(range(len(row)) for row in rows))
        if all(sum(row[i] for row, i in zip(each.costs.values(), choice, strict=True)) <= each.layers_total * (1 + 1e-9) for each in limits)
    ]
    if picked is None:
        return
    for each in limits:
        assert sum(row[i] for row, i in zip(each.costs.values(), picked, strict=True)) <= each.layers_total * (1 + 1e-6)
    assert sum(row[i][2] for row, i in zip(rows, picked, strict=True)) >= min(within) - 1e-9


def test_two_constraints_are_nearly_always_solved_nearly_optimally():
    generator = torch.Generator().manual_seed(0)
    good = found = possible = 0
    for _ in range(60):
        rows = [
            [(*torch.rand(2, generator=generator).add(0.05).tolist(), float(torch.rand((), generator=generator))) for _ in range(4)]
            for _ in range(5)
        ]
        limits = [constraint_at(rows, 0, 0.4), constraint_at(rows, 1, 0.4)]
        within = [
            sum(row[i][2] for row, i in zip(rows, choice, strict=True))
            for choice in itertools.product(range(4), repeat=5)
            if all(sum(row[i] for row, i in zip(each.costs.values(), choice, strict=True)) <= each.layers_total for each in limits)
        ]
        if not within:
            continue
        possible += 1
        picked = constraints.allocate_within(latency, [[Offer(cost=0.0, loss=loss) for _, _, loss in row] for row in rows], limits)
        found += picked is not None
        good += picked is not None and sum(row[i][2] for row, i in zip(rows, picked, strict=True)) <= 1.15 * min(within)
    assert possible > 50
    assert found >= 0.95 * possible
    assert good >= 0.8 * possible


# Budgets of a network


@pytest.mark.parametrize(
    "asked",
    [
        {"macs_ratio": 0.5},
        {"params_ratio": 0.5},
        {"size_mb": 0.006},
        {"latency_ms": 1.4},
        {"speedup": 1.3},
        {"macs_ratio": 0.6, "speedup": 1.2},
        {"latency_ms": 1.5, "params_ratio": 0.6},
    ],
    ids=str,
)
def test_a_plan_keeps_its_budget(net, stats, inputs, asked):
    made = plan(net, stats, budget=Budget(**asked), costs=costs_by_rule(ms_by_macs), inputs=inputs, rank_multiple=4)
    kept = {
        "macs_ratio": made.macs / made.macs_before,
        "params_ratio": made.params / made.params_before,
        "size_mb": made.params / 1e6,
        "latency_ms": made.latency_ms,
        "speedup": -made.latency_ms_before / made.latency_ms,
    }
    for name, value in asked.items():
        assert kept[name] <= (-value if name == "speedup" else value) + 1e-9
    assert made.layers
    saved = sum(step.latency_ms_before - step.latency_ms for step in made.layers)
    assert made.latency_ms == pytest.approx(WHOLE_MS - saved)
    assert made.budget == Budget(**asked)


@pytest.mark.parametrize(
    "asked", [{"macs_ratio": 0.01}, {"params_ratio": 0.01}, {"size_mb": 0.001}, {"latency_ms": 0.5}, {"speedup": 30.0}], ids=str
)
def test_a_budget_out_of_reach_is_refused_with_the_nearest_reachable_value(net, stats, asked):
    with pytest.raises(ConfigError) as error:
        plan(net, stats, budget=Budget(**asked), costs=costs_by_rule(ms_by_macs), rank_multiple=4)
    nearest = float(re.search(r"ask for at (?:least|most) ([\d.e+-]+)", str(error.value))[1])
    (name,) = asked
    assert plan(net, stats, budget=Budget(**{name: nearest}), costs=costs_by_rule(ms_by_macs), rank_multiple=4).layers


def test_of_several_budgets_the_unreachable_one_is_named(net, stats):
    with pytest.raises(ConfigError, match=r"speed-up 30: the lowest this network reaches is .* ms; ask for at most"):
        plan(net, stats, budget=Budget(macs_ratio=1.0, speedup=30.0), costs=costs_by_rule(ms_by_macs), rank_multiple=4)


def test_a_latency_without_a_device_is_refused(net, stats):
    with pytest.raises(ConfigError, match="speed-up 2: latencies belong to a device; give costs measured there"):
        plan(net, stats, budget=Budget(speedup=2.0))


def test_layers_slower_alone_than_the_whole_network_are_scaled_down(net, stats, inputs):
    """Layers cannot take longer in a network than the network itself, however long they take alone."""
    whole_ms = sum(ms_by_macs(None, layer.macs) for layer in stats.layers)
    asked = {"macs_ratio": 0.5, "inputs": inputs, "rank_multiple": 4}
    exact, cold = (
        plan(net, stats, costs=costs_by_rule(lambda form, macs, times=times: times * ms_by_macs(form, macs), whole_ms=whole_ms), **asked)
        for times in (1, 3)
    )
    assert cold.latency_ms == pytest.approx(exact.latency_ms)
    assert cold.latency_ms < cold.latency_ms_before == whole_ms
    assert [(s.layer, s.rank) for s in cold.layers] == [(s.layer, s.rank) for s in exact.layers]


def test_nothing_slower_than_the_dense_layer_is_chosen(net, stats, inputs):
    def slow_bodies(form, macs):
        factorized = form.method != "dense" and form.arguments.get("kernel_size") == (3, 3)
        return 1.0 if factorized else ms_by_macs(form, macs)

    made = plan(net, stats, budget=Budget(macs_ratio=0.9), costs=costs_by_rule(slow_bodies), inputs=inputs, rank_multiple=4)
    assert {step.layer for step in made.layers} <= {"mix", "head"}
    why = {s.layer: s.reason for s in made.skipped}
    assert re.fullmatch(r"\w+ [\d×]+: 1 ms, slower than dense int8-static, [\d.]+ ms", why["body"])


def test_a_budget_is_refused_if_no_form_is_faster_than_its_dense_layer(net, stats):
    with pytest.raises(ConfigError, match=r"no form of any layer is faster than the layer is on a board.*; ship the network quantized"):
        plan(
            net,
            stats,
            budget=Budget(speedup=1.5),
            costs=costs_by_rule(lambda form, macs: 0.1 if form.method == "dense" else 0.2),
            rank_multiple=4,
        )


def test_forms_that_cannot_be_measured_are_not_chosen(net, stats, inputs):
    made = plan(
        net,
        stats,
        budget=Budget(speedup=1.1),
        costs=costs_by_rule(lambda form, macs: None if form.method == "tucker2" else ms_by_macs(form, macs)),
        inputs=inputs,
        rank_multiple=4,
    )
    assert made.layers
    assert not {step.method for step in made.layers} & {"tucker2"}


def test_a_macs_budget_with_a_device_saves_time(net, stats, inputs):
    """The forms that a plan by MACs alone chooses are slow on this device; a plan with latencies chooses their neighbours."""
    blind = plan(net, stats, macs_ratio=0.5, inputs=inputs, rank_multiple=2)
    slow = {(step.method, step.rank) for step in blind.layers}

    def ms(form, macs):
        return 1e-5 * macs * (1.8 if (form.method, form.rank) in slow else 1.0)

    seeing = plan(net, stats, macs_ratio=0.5, costs=costs_by_rule(ms, whole_ms=1e-5 * stats.macs), inputs=inputs, rank_multiple=2)
    assert slow
    assert seeing.macs <= 0.5 * stats.macs
    priced = sum(1.8e-5 * step.macs for step in blind.layers) + sum(1e-5 * s.macs for s in blind.skipped)
    assert seeing.latency_ms < 0.8 * priced


def test_chosen_forms_are_measured_a_second_time(net, stats, inputs):
    asked = {"macs_ratio": 0.5, "inputs": inputs, "rank_multiple": 2}
    first = plan(net, stats, costs=costs_by_rule(lambda form, macs: 1e-5 * macs, whole_ms=1e-5 * stats.macs), **asked)
    lucky = {(step.method, step.rank) for step in first.layers}  # these seem to take a tenth of their time until they are measured again

    def ms(form, macs):
        return 1e-5 * macs * (0.1 if (form.method, form.rank) in lucky else 1.0)

    def remeasure(wanted):
        found = lucky & {(w.form.method, w.form.rank) for w in wanted}
        lucky.difference_update(found)
        return bool(found)

    given = costs_by_rule(ms, whole_ms=1e-5 * stats.macs)
    deceived = plan(net, stats, costs=given, **asked)
    told = plan(net, stats, costs=given._replace(remeasure=remeasure), **asked)
    assert deceived.latency_ms < 0.8e-5 * deceived.macs
    assert told.latency_ms == pytest.approx(1e-5 * told.macs)
    assert not lucky


def test_a_plan_says_why_other_forms_of_a_layer_were_not_chosen(net, stats, inputs):
    made = plan(net, stats, macs_ratio=0.5, costs=costs_by_rule(ms_by_macs), inputs=inputs, rank_multiple=4)
    (body,) = (step for step in made.layers if step.layer == "body")
    others = {"tucker2", "channel_svd", "spatial_svd"} - {body.method}
    assert {said.split()[0].rstrip(":") for said in body.alternatives} >= others
    assert all(re.fullmatch(r"\w+ [\d×]+: [\d.e-]+ ms, .+|\w+: at each rank another form .+", said) for said in body.alternatives)


# A bound on accuracy


def accuracy_drop_of(net, made):
    """Return the points of top-1 that a plan costs on the evaluation inputs, after BatchNorm re-estimation on the planning inputs."""
    judged = digits()[0].inputs[400:1400]
    labels = digits()[0].labels[400:1400]
    small, _ = decompose(net, made)
    recovery = (digits()[0].inputs[:192],)
    reestimate_batchnorm(small, batches.split_evenly(recovery), since=record_statistics(net, batches.split_evenly(recovery)))
    return 100 * (top1(forward(net, (judged,))[0], labels) - top1(forward(small, (judged,))[0], labels))


@pytest.mark.parametrize("allocator", ["latency", "minmax"])
def test_a_bound_on_the_accuracy_drop_is_kept_and_a_looser_bound_saves_more(net, stats, inputs, allocator):
    judged = ((digits()[0].inputs[400:1400],), digits()[0].labels[400:1400])
    savings = []
    for bound in (0.5, 3.0, 15.0):
        made = plan(net, stats, budget=Budget(max_drop=bound), inputs=inputs, judged=judged, rank_multiple=4, allocator=allocator)
        assert accuracy_drop_of(net, made) <= bound + 1e-6
        assert f"points of top-1 on 1000 inputs; {bound:g} are allowed" in made.notes[-1]
        savings.append(made.macs)
    assert savings == sorted(savings, reverse=True)
    assert savings[0] < stats.macs


def test_a_bound_on_the_accuracy_drop_holds_together_with_another_budget(net, stats, inputs):
    judged = ((digits()[0].inputs[400:1400],), None)
    made = plan(net, stats, budget=Budget(max_drop=50.0, macs_ratio=0.6), inputs=inputs, judged=judged, rank_multiple=4)
    assert 0.5 * stats.macs < made.macs <= 0.6 * stats.macs
    assert "points of fidelity to the dense network" in made.notes[-1]


def test_a_bound_that_no_saving_keeps_gives_a_plan_without_decomposed_layers(net, stats, inputs):
    judged = (
        (torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)),),
        None,
    )  # noise in place of digits: the smallest change flips answers
    fixed = {layer.name: ("dense", ()) for layer in stats.layers if layer.name != "body"}
    made = plan(net, stats, budget=Budget(max_drop=0.01), inputs=inputs, judged=judged, layers=fixed)
    assert not made.layers
    assert made.macs == stats.macs
    said = r"nothing is worth decomposing: saving [\d.]+% of the MACs costs ([\d.]+) points of .*, 0\.01 are allowed; ship it quantized"
    found = re.search(said, made.notes[-1])
    assert found, made.notes
    assert float(found[1]) > 0.01


def test_a_bound_on_accuracy_needs_data(net, stats, inputs):
    with pytest.raises(ConfigError, match="max drop 1: 0 inputs to measure it on, 100 are needed"):
        plan(net, stats, budget=Budget(max_drop=1.0), inputs=inputs)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"params_ratio": 1.2}, "params_ratio 1.2: must be above 0 and at most 1"),
        ({"size_mb": 0.0}, "size_mb 0.0: must be above 0"),
        ({"latency_ms": math.inf}, "latency_ms inf: must be above 0"),
        ({"speedup": 0.5}, "speedup 0.5: must be at least 1"),
        ({"max_drop": math.nan}, "max_drop nan: must be above 0"),
    ],
)
def test_a_budget_out_of_its_range_is_refused(net, stats, asked, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        plan(net, stats, budget=Budget(**asked))


def test_the_minmax_allocator_keeps_a_latency(net, stats):
    made = plan(net, stats, budget=Budget(latency_ms=1.5), costs=costs_by_rule(ms_by_macs), allocator="minmax", rank_multiple=4)
    assert made.latency_ms <= 1.5


# Forms and dtypes together


@pytest.fixture(scope="module")
def uneven_network():
    """Return a network whose depthwise layer reads channels of very different size, of which one common scale loses the small ones."""
    return trained(Uneven(), epochs=3).spread()


def joint_costs(whole_ms):
    """Return latencies by which a layer takes three times as long in float as in int8."""
    return DeviceCosts(
        "int8-static", "a board", whole_ms, lambda wanted: [ms_by_macs(w.form, w.macs) * (3 if w.scheme == "fp32" else 1) for w in wanted]
    )


def test_the_layers_that_int8_hurts_most_stay_in_float_as_far_as_the_latency_permits(uneven_network, inputs):
    stats = analyze(uneven_network, IMAGE, measure=False)
    losses = measure_int8_losses(uneven_network, [layer.name for layer in stats.layers], inputs)
    assert max(losses, key=losses.get) in ("dw1", "project", "expand", "dw2")
    kept = []
    for budget in (0.7, 1.0, 1.6, 4.0):
        made = plan(
            uneven_network,
            stats,
            budget=Budget(latency_ms=budget),
            costs=joint_costs(1.0),
            inputs=inputs,
            mixed_precision=True,
            rank_multiple=4,
        )
        assert made.latency_ms <= budget + 1e-9
        assert set(made.schemes.values()) <= {"fp32"}
        kept.append(sum(losses[name] for name in made.schemes))
        for each in (*made.layers, *made.skipped):
            said = each.why if hasattr(each, "why") else each.reason
            assert ("kept in fp32: rounding it would cost" in said) == bool(each.scheme)
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]
    assert kept[-1] >= 0.9 * sum(losses.values())


def test_mixed_precision_without_a_latency_budget_is_no_slower_than_the_dense_int8_network(uneven_network, inputs):
    stats = analyze(uneven_network, IMAGE, measure=False)
    made = plan(uneven_network, stats, macs_ratio=0.9, costs=joint_costs(1.0), inputs=inputs, mixed_precision=True, rank_multiple=4)
    assert made.latency_ms <= made.latency_ms_before
    assert made.macs <= 0.9 * made.macs_before


def test_int8_losses_are_measured_once(uneven_network, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGECOMPRESS_CACHE", str(tmp_path))
    once = measure_int8_losses(uneven_network, ["dw1", "head"], inputs)
    all_of_it = measure_int8_losses(uneven_network, ["dw1", "head", "expand"], inputs)
    assert {name: all_of_it[name] for name in once} == once
    monkeypatch.setattr(int8_loss, "divergence", lambda *_: pytest.fail("was measured again"))
    assert measure_int8_losses(uneven_network, ["expand", "dw1"], inputs) == {name: all_of_it[name] for name in ("expand", "dw1")}


def test_measuring_int8_losses_leaves_the_model_unchanged(uneven_network, inputs, monkeypatch):
    monkeypatch.setenv("EDGECOMPRESS_CACHE", "")
    before = {name: value.clone() for name, value in uneven_network.state_dict().items()}
    measure_int8_losses(uneven_network, ["dw1", "head"], inputs)
    assert all(torch.equal(value, before[name]) for name, value in uneven_network.state_dict().items())
    assert not uneven_network.dw1._forward_pre_hooks
