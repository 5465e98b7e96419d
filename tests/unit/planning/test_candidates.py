"""Laws of candidates: their ranks, their Pareto front, and losses interpolated between measured points."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import Net, trained
from torch import nn

from edgecompress.factorizations import METHODS
from edgecompress.network.analyze import analyze
from edgecompress.planning.candidates import (
    MAX_GRID_RANKS,
    MAX_MACS_FRACTION,
    candidate_ranks,
    dense_candidate,
    fit_candidates,
    pareto_front,
    rank_grid,
    worthwhile_candidates,
)
from edgecompress.planning.fitted_candidates import FAST_METHODS
from edgecompress.planning.sensitivity import interpolate_loss

QUICK_FORMS = tuple((method, {}) for method in FAST_METHODS)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    points=st.lists(st.tuples(st.floats(1e-4, 1), st.floats(1e-9, 100)), max_size=4),
    errors=st.lists(st.floats(0, 1.5), min_size=2, max_size=8),
)
def test_interpolated_loss_is_monotone_in_the_error(points, errors):
    losses = [interpolate_loss(points, error) for error in sorted(errors)]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(losses))
    assert interpolate_loss(points, 0.0) == 0


def test_interpolation_goes_through_the_measured_points():
    points = [(0.1, 0.01), (0.4, 0.3), (0.8, 2.0)]
    assert [interpolate_loss(points, e) for e, _ in points] == pytest.approx([loss for _, loss in points])
    assert interpolate_loss(points, 0.05) == pytest.approx(0.01 / 4)  # quadratic below the first


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 16, 31, 64, 96, 512])
@pytest.mark.parametrize("multiple", [1, 4, 8, 16])
def test_rank_grid_is_short_sorted_within_the_limit_and_of_the_multiple(limit, multiple):
    grid = rank_grid(limit, multiple)
    assert grid == sorted(set(grid))
    assert 1 <= grid[0] <= grid[-1] == limit
    assert len(grid) <= 9
    if limit >= 4 * multiple:
        assert all(r % multiple == 0 for r in grid[:-1])


def test_candidates_are_a_pareto_front_with_dense_last():
    net = trained(Net())
    stats = analyze(net, (torch.zeros(1, 1, 8, 8),), measure=False)
    ranges = [worthwhile_candidates(layer, net.get_submodule(layer.name), QUICK_FORMS, multiple=4) for layer in stats.layers]
    for layer, made, found in zip(stats.layers, ranges, fit_candidates(ranges), strict=True):
        kept = [*pareto_front(found), dense_candidate(layer)]
        assert bool(made.reason) == (not found)
        assert all(candidate.macs <= MAX_MACS_FRACTION * layer.macs for candidate in found)
        for cheaper, dearer in pairwise(kept):
            assert cheaper.macs < dearer.macs
            assert cheaper.relative_error > dearer.relative_error


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(64, 64, 3, padding=1), lambda: nn.Linear(96, 120), lambda: nn.Conv2d(48, 96, 1)])
def test_every_method_has_a_short_grid_of_worthwhile_ranks_up_to_the_largest(method, make):
    model = nn.Sequential(make())
    layer = analyze(
        model, (torch.zeros(1, 96) if isinstance(model[0], nn.Linear) else torch.zeros(1, model[0].in_channels, 8, 8),), measure=False
    ).layers[0]
    made = worthwhile_candidates(layer, model[0], [(method, {})], multiple=8)
    if not made.found:
        assert made.reason in (
            METHODS[method].reject(model[0]),
            f"no rank of {method} saves the 30% of its MACs that pay for the added layers",
        )
        return
    assert 2 <= len(made.found) <= (MAX_GRID_RANKS + 1) ** min(2, len(made.found[0].rank))
    assert len({c.rank for c in made.found}) == len(made.found)
    assert all(0 < c.macs <= MAX_MACS_FRACTION * layer.macs for c in made.found)
    if len(made.found[0].rank) != 2:  # the largest rank on the line saves about as little as is worthwhile
        assert max(c.macs for c in made.found) > 0.4 * layer.macs


def test_ranks_other_than_channel_counts_go_up_to_the_last_that_pays():
    asked = []

    def pays(rank):
        asked.append(rank)
        return rank[0] <= 67

    assert list(candidate_ranks((576,), 8, narrow=64, pays=pays)) == [(8,), (16,), (24,), (32,), (40,), (48,), (56,), (64,)]
    assert len(asked) <= 11
    assert not list(candidate_ranks((576,), 8, narrow=64, pays=lambda rank: False))


def test_the_numbers_of_a_long_rank_take_the_same_fraction_of_their_limits():
    found = list(candidate_ranks((64, 8, 32), 4, narrow=64, pays=lambda rank: sum(rank) <= 52))
    assert found == sorted(set(found))
    assert found[-1] == (32, 4, 16)
    assert all(r_a == pytest.approx(2 * r_c, abs=8) for r_a, _, r_c in found)
