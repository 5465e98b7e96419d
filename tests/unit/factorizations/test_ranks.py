"""Rank estimators: they find a planted rank and keep a fraction of the energy or a parameter rate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import METHODS, factorize, parse_options, relative_error
from edgecompress.factorizations.blocks.layers import channels_per_group
from edgecompress.factorizations.ranks import ESTIMATORS, UNFOLDINGS, rank_by_energy, rank_by_evbmf, rank_by_parameter_rate
from edgecompress.factorizations.tensors.vbmf import evbmf_rank, minimize_brent
from edgecompress.network.counting import params_of

WIDE_AND_TALL = [(64, 576, 10), (576, 64, 10), (128, 128, 5), (30, 300, 1), (512, 144, 20), (2304, 256, 20)]


def planted_rank_matrix(m, n, r, snr, *, seed=0, dtype=torch.float64):
    """Return a matrix of rank `r` and mean square 1, plus noise of standard deviation 1 / snr."""
    g = torch.Generator().manual_seed(seed)
    low = torch.randn(m, r, generator=g, dtype=dtype) @ torch.randn(r, n, generator=g, dtype=dtype) / math.sqrt(r)
    return low + torch.randn(m, n, generator=g, dtype=dtype) / snr


def noise_matrix(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("snr", [3, 100, 1e9])
@pytest.mark.parametrize(("m", "n", "r"), WIDE_AND_TALL)
def test_evbmf_finds_a_planted_rank(m, n, r, snr, dtype):
    assert evbmf_rank(planted_rank_matrix(m, n, r, snr, dtype=dtype)) == r


@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 2), (5, 1), (16, 144), (64, 64), (144, 16), (512, 144)])
def test_evbmf_finds_nothing_in_noise(m, n):
    assert [evbmf_rank(noise_matrix(m, n, seed)) for seed in range(5)] == [0] * 5


def test_evbmf_of_zeros_is_0():
    assert evbmf_rank(torch.zeros(4, 9)) == 0


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.floats(0.3, 30), st.floats(-6, 6), st.integers(0, 99))
def test_evbmf_does_not_change_under_transposition_rotation_or_scaling(m, n, r, snr, scale, seed):
    matrix = planted_rank_matrix(m, n, r, snr, seed=seed)
    left, right = torch.linalg.qr(noise_matrix(m, m, 1))[0], torch.linalg.qr(noise_matrix(n, n, 2))[0]
    rank = evbmf_rank(matrix)
    assert 0 <= rank <= min(m, n)
    assert [evbmf_rank(other) for other in (matrix.T, left @ matrix @ right, 10**scale * matrix)] == [rank] * 3


@pytest.mark.parametrize(("m", "n", "r"), WIDE_AND_TALL)
def test_more_noise_never_shows_more_components(m, n, r):
    ranks = [evbmf_rank(planted_rank_matrix(m, n, r, snr)) for snr in (10, 3, 1, 0.5, 0.3, 0.1, 0.05)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == r
    assert ranks[-1] == 0


def test_weak_float32_components_are_separated_from_noise():
    squares = torch.cat([torch.tensor([1.0]), torch.full((4,), 1e-9), torch.full((59,), 1e-14)]).double()
    matrix = torch.linalg.qr(noise_matrix(64, 64, 1))[0] * squares.sqrt() @ torch.linalg.qr(noise_matrix(576, 64, 2))[0].T
    assert evbmf_rank(matrix) == 5
    one = torch.zeros(64, 576)
    one[0, 0] = 1.0
    assert evbmf_rank(one + 1e-4 * planted_rank_matrix(64, 576, 4, 10, dtype=torch.float32)) == 5


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.floats(0.01, 1), st.floats(1.5, 50), st.floats(0, 1))
def test_brent_finds_the_minimum_of_a_unimodal_function(low, ratio, where):
    high = low * ratio
    wanted = low + where * (high - low)
    assert minimize_brent(lambda x: abs(x - wanted) ** 1.5 + (x - wanted) ** 2, low, high) == pytest.approx(wanted, rel=1e-4)


LAYERS = {
    "linear": lambda: nn.Linear(48, 20),
    "linear-tall": lambda: nn.Linear(16, 60, bias=False),
    "1x1": lambda: nn.Conv2d(24, 16, 1),
    "3x3": lambda: nn.Conv2d(16, 24, 3),
    "3x3-few-outputs": lambda: nn.Conv2d(24, 6, 3, bias=False),
    "3x3-one-input": lambda: nn.Conv2d(1, 32, 3),
    "3x5-grouped": lambda: nn.Conv2d(16, 12, (3, 5), groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "conv1d": lambda: nn.Conv1d(12, 20, 5),
    "transposed": lambda: nn.ConvTranspose2d(12, 18, 3, groups=3),
}


def taken_pairs():
    for name, make in LAYERS.items():
        layer = make()
        for method, form in METHODS.items():
            if form.reject(layer) is None:
                yield pytest.param(name, method, id=f"{name}-{method}")


TAKEN = list(taken_pairs())


def make_layer(name):
    torch.manual_seed(0)
    return LAYERS[name]()


def options_for(method, layer):
    return {"slices": 1} if method == "grouped_svd" and channels_per_group(layer)[1] % 2 else {}


def skeleton_params(layer, method, rank, options):
    with torch.device("meta"):
        return params_of(METHODS[method].skeleton(layer, rank, parse_options(method, options)))


@pytest.mark.parametrize("fraction", [1e-3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("name", "method"), [p for p in TAKEN if p.values[1] in {*UNFOLDINGS, "tensor_train"}])
def test_energy_keeps_its_fraction(name, method, fraction):
    layer = make_layer(name)
    options = options_for(method, layer)
    rank = rank_by_energy(layer, method, fraction, options=options)
    error = relative_error(layer, method, factorize(layer, method, rank, options=options))
    assert error**2 <= 1 - fraction + 1e-10
    if len(rank) == 1 and rank != (1,):
        less = relative_error(layer, method, factorize(layer, method, (rank[0] - 1,), options=options))
        assert less**2 > 1 - fraction - 1e-10


@pytest.mark.parametrize("rate", [1, 1.5, 2, 3.7])
@pytest.mark.parametrize(("name", "method"), TAKEN)
def test_a_parameter_rate_gives_the_largest_rank_that_keeps_it(name, method, rate):
    layer = make_layer(name)
    options = options_for(method, layer)
    limit = METHODS[method].max_rank(layer, parse_options(method, options))
    budget = params_of(layer) / rate
    try:
        rank = rank_by_parameter_rate(layer, method, rate, options=options)
    except ConfigError:
        assert skeleton_params(layer, method, (1,) * len(limit), options) > budget
        return
    assert skeleton_params(layer, method, rank, options) <= budget
    if len(limit) == 1:
        assert all(skeleton_params(layer, method, (r,), options) > budget for r in range(rank[0] + 1, limit[0] + 1))


def test_tucker2_ranks_at_a_rate_equal_the_quadratic_formula():
    layer = nn.Conv2d(64, 128, 3, bias=False)
    beta, rate = 0.8 * 128 / 64, 2.5
    a, b, c = beta * 9, 64 + beta * 128, -128 * 64 * 9 / rate
    r_in = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert rank_by_parameter_rate(layer, "tucker2", rate) == (pytest.approx(beta * r_in, abs=beta), pytest.approx(r_in, abs=1))


def test_a_cp_core_at_a_rate_compresses_the_tucker_core():
    r_out, r_in, r = rank_by_parameter_rate(nn.Conv2d(64, 64, 3, bias=False), "tucker2_cp_epc", 4)
    assert r_out == r_in
    assert r * (r_out + 9 + r_in) < 9 * r_out * r_in


@pytest.mark.parametrize(("name", "method"), [p for p in TAKEN if p.values[1] in UNFOLDINGS])
def test_evbmf_is_a_rank_that_the_method_takes(name, method):
    layer = make_layer(name)
    options = options_for(method, layer)
    rank = rank_by_evbmf(layer, method, options=options)
    limit = METHODS[method].max_rank(layer, parse_options(method, options))
    assert len(rank) == len(limit)
    assert all(1 <= r <= m for r, m in zip(rank, limit, strict=True))


def test_evbmf_finds_the_planted_rank_of_each_unfolding():
    g = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(48, 64, 3)
    with torch.no_grad():
        core, u_out, u_in = (torch.randn(*shape, generator=g) for shape in [(9, 6, 3, 3), (64, 9), (48, 6)])
        layer.weight.copy_(torch.einsum("abhw,ta,sb->tshw", core, u_out, u_in) / 9)
        layer.weight.add_(torch.randn(layer.weight.shape, generator=g) / 10)
    assert rank_by_evbmf(layer, "tucker2") == (9, 6)
    assert rank_by_evbmf(layer, "channel_svd") == (9,)


def test_evbmf_takes_the_largest_rank_that_a_group_needs():
    layer = nn.Conv1d(64, 64, 3, groups=2, bias=False)
    with torch.no_grad():
        layer.weight[:32] = planted_rank_matrix(32, 96, 2, 5, dtype=torch.float32).reshape(32, 32, 3)
        layer.weight[32:] = planted_rank_matrix(32, 96, 7, 5, seed=1, dtype=torch.float32).reshape(32, 32, 3)
    assert rank_by_evbmf(layer, "channel_svd") == (7,)


@pytest.mark.parametrize(
    ("estimator", "layer", "method", "amount", "kind", "says"),
    [
        ("energy", "linear", "svd", 0.0, ConfigError, "conv: fraction 0.0; it must be above 0"),
        ("energy", "linear", "svd", math.nan, ConfigError, "fraction nan"),
        ("energy", "3x3", "cp3", 0.9, UnsupportedError, "conv: cp3 is not made of matrices"),
        ("parameter_rate", "linear", "svd", 0.5, ConfigError, "conv: rate 0.5; it is parameters before over after, at least 1"),
        ("parameter_rate", "linear", "svd", math.inf, ConfigError, "rate inf"),
        (
            "parameter_rate",
            "linear",
            "svd",
            100.0,
            ConfigError,
            "conv: rate 100.0; svd has 88 parameters at rank \\(1,\\), more than the 10",
        ),
        ("parameter_rate", "3x3", "svd", 2.0, UnsupportedError, "conv: kernel 3×3"),
        ("parameter_rate", "3x3", "nonsense", 2.0, ConfigError, "unknown method 'nonsense'"),
        ("evbmf", "3x3", "cp3", None, UnsupportedError, "conv: cp3 is not made of matrices .* parameter_rate"),
    ],
)
def test_bad_requests_raise_an_error_of_edgecompress(estimator, layer, method, amount, kind, says):
    with pytest.raises(kind, match=says):
        ESTIMATORS[estimator](make_layer(layer), method, *([] if amount is None else [amount]), name="conv")


@pytest.mark.parametrize("estimator", ["evbmf", "energy"])
@pytest.mark.parametrize(("value", "says"), [(math.nan, "NaN or infinity"), (0.0, "all zero")])
def test_weights_without_a_rank_are_refused(estimator, value, says):
    layer = nn.Linear(6, 5)
    nn.init.constant_(layer.weight, value)
    with pytest.raises(ConfigError, match=f"fc: its weights .*{says}"):
        ESTIMATORS[estimator](layer, "svd", *([0.9] if estimator == "energy" else []), name="fc")


def test_a_parameter_rate_needs_no_weight_values():
    with torch.device("meta"):
        layer = nn.Linear(512, 512)
    assert rank_by_parameter_rate(layer, "svd", 4) == ((512 * 513 // 4 - 512) // 1024,)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_change_neither_the_layer_nor_the_random_state(estimator):
    layer = make_layer("3x3")
    before, state = layer.weight.detach().clone(), torch.get_rng_state()
    ESTIMATORS[estimator](layer, "tucker2", *({"energy": [0.8], "parameter_rate": [2.0]}.get(estimator, [])))
    assert torch.equal(before, layer.weight)
    assert torch.equal(state, torch.get_rng_state())
