"""Laws of every allocator: within the budget, refused only when nothing fits, and each best by its own measure."""

import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgecompress.errors import ConfigError
from edgecompress.planning.allocators import ALLOCATORS, Offer, get_allocator

numbers = st.integers(0, 1000)
compact = st.builds(Offer, st.integers(1, 60), numbers, st.floats(0, 1), st.floats(0, 1), st.floats(0, 3))
dense = st.integers(60, 90).map(Offer)
tables = st.lists(st.builds(lambda found, last: [*found, last], st.lists(compact, max_size=3), dense), min_size=1, max_size=4)
# The harm that each allocator minimises over the layers, from a layer's offers and the chosen one.
HARM = {
    "minmax": lambda row, offer: offer.spectral_error,
    "energy": lambda row, offer: offer.error,
    "vbmf": lambda row, offer: offer.weakening,
    "uniform": lambda row, offer: 1 - offer.cost / max(each.cost for each in row),
}


def chosen_offers(table, picked):
    return [row[i] for row, i in zip(table, picked, strict=True)]


def total_cost(table, picked):
    return sum(offer.cost for offer in chosen_offers(table, picked))


def affordable_choices(table, budget):
    return [p for p in itertools.product(*(range(len(row)) for row in table)) if total_cost(table, p) <= budget]


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(table=tables, budget=st.integers(0, 400))
def test_the_budget_is_kept_and_refused_only_if_no_choice_fits(name, table, budget):
    picked = ALLOCATORS[name].allocate(table, budget)
    if picked is None:
        assert not affordable_choices(table, budget)
    else:
        assert tuple(picked) in affordable_choices(table, budget)


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(table=tables)
def test_all_layers_stay_dense_if_the_budget_permits(name, table):
    harmful = [
        [
            o if o.cost == max(e.cost for e in row) else o._replace(loss=1 + o.loss, error=0.1, spectral_error=0.1, weakening=0.1)
            for o in row
        ]
        for row in table
    ]
    picked = ALLOCATORS[name].allocate(harmful, sum(max(o.cost for o in row) for row in harmful))
    assert all(o.cost == max(e.cost for e in row) for row, o in zip(harmful, chosen_offers(harmful, picked), strict=True))


TIGHT_BUDGET_OFFERS = [[Offer(3.0, 0.0), Offer(1.0, 1.0)], [Offer(3.0, 0.0), Offer(1.0, 1.0)], [Offer(1.0, 0.0), Offer(9.0, 0.0)]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(table=tables, budget=st.integers(1, 400))
@example(table=TIGHT_BUDGET_OFFERS, budget=7)  # 3 + 3 + 1, each a fraction of 7 that a grid of 5,000 units would round up
def test_the_latency_allocator_finds_the_choice_with_the_least_loss(table, budget):
    picked = ALLOCATORS["latency"].allocate(table, budget)
    loss = lambda p: sum(offer.loss for offer in chosen_offers(table, p))  # noqa: E731
    assert picked is None or loss(picked) == pytest.approx(min(map(loss, affordable_choices(table, budget))), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("name", HARM)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(table=tables, budget=st.integers(1, 400))
def test_no_choice_within_the_budget_harms_the_worst_layer_less(name, table, budget):
    picked = ALLOCATORS[name].allocate(table, budget)
    worst = lambda p: max(HARM[name](row, row[i]) for row, i in zip(table, p, strict=True))  # noqa: E731
    assert picked is None or worst(picked) == min(map(worst, affordable_choices(table, budget)))


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(table=tables, share=st.floats(0.05, 1), unit=st.floats(1e-6, 1e9))
def test_a_budget_in_any_unit_is_kept(name, table, share, unit):
    scaled = [[offer._replace(cost=offer.cost * unit) for offer in row] for row in table]
    budget = share * sum(max(offer.cost for offer in row) for row in scaled)
    picked = ALLOCATORS[name].allocate(scaled, budget)
    assert picked is None or math.fsum(offer.cost for offer in chosen_offers(scaled, picked)) <= budget * (1 + 1e-12)


def test_an_unknown_allocator_is_refused_with_a_list_of_those_that_exist():
    with pytest.raises(ConfigError, match="unknown allocator 'knapsack'; choose from latency, minmax, energy, vbmf, uniform"):
        get_allocator("knapsack")
