"""CP factors on an integer grid, and how factors of a trained network survive rounding."""

import functools
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tensorly.decomposition import parafac
from torch import nn

from edgecompress.factorizations import factorize, relative_error
from edgecompress.factorizations.tensors import cp, epc, quantized_cp
from edgecompress.factorizations.tensors.quantized_cp import (
    grid_scales,
    quantize_factors,
    round_factors,
    round_to_grid,
    round_with_compensation,
    run_admm,
    scale_axes,
)
from edgecompress.factorizations.tensors.sensitivity import balance_factors
from edgecompress.toolchains import REPOSITORY

WEIGHTS = REPOSITORY / "examples" / "resnet20_fashion_mnist" / "weights.safetensors"
KERNELS = ["layer1.0.conv1", "layer1.2.conv2", "layer2.0.conv1", "layer2.1.conv2", "layer3.0.conv2", "layer3.2.conv1"]
# The widest take seconds.
EACH_KERNEL = [pytest.param(name, marks=pytest.mark.slow if name.startswith("layer3") else ()) for name in KERNELS]


@pytest.fixture(scope="module")
def trained():
    weights = load_file(WEIGHTS)
    return {name: weights[f"{name}.weight"].double() for name in KERNELS}


def rank_at_rate(k, rate):
    t, s = k.shape[:2]
    return int(k.numel() / rate / (t + s + k[0, 0].numel()))


def relative_error_of(k, factors):
    return float(torch.linalg.vector_norm(k - cp.compose_tensor(factors).reshape(k.shape)) / torch.linalg.vector_norm(k))


def tensorly_factors(k, rank):
    weights, factors = parafac(cp.kernel_tensor(k).x.numpy(), rank, n_iter_max=100, tol=0, init="random", random_state=0)
    made = [torch.from_numpy(f) for f in factors]
    return [made[0] * torch.from_numpy(weights), *made[1:]]


@pytest.mark.parametrize("name", EACH_KERNEL)
def test_cp_epc_of_a_trained_network_survives_rounding_and_tensorly_does_not(trained, name):
    k = trained[name]
    rank = rank_at_rate(k, 4)
    ours, theirs = epc.decompose_stably(cp.kernel_tensor(k), rank).factors, tensorly_factors(k, rank)
    assert relative_error_of(k, ours) <= 1.03 * relative_error_of(k, theirs)
    lost = {}
    for who, factors in (("ours", ours), ("tensorly", theirs)):
        exact = relative_error_of(k, factors)
        int8 = relative_error_of(k, round_factors(factors, 8, per_channel=False)) / exact
        int4 = relative_error_of(k, round_factors(factors, 4, per_channel=True)) / exact
        lost[who] = int8, int4
    assert lost["ours"][0] <= 1.01
    assert lost["ours"][1] <= 1.3
    assert lost["ours"][0] < lost["tensorly"][0]
    assert lost["ours"][1] < lost["tensorly"][1]


@pytest.fixture(scope="module")
def stable_factors(trained):
    """Return a function that fits a kernel at a third of its parameters, once for all grids."""
    return functools.cache(lambda name: epc.decompose_stably(cp.kernel_tensor(trained[name]), rank_at_rate(trained[name], 3)).factors)


@pytest.mark.parametrize("name", EACH_KERNEL)
@pytest.mark.parametrize(("bits", "per_channel"), [(8, True), (8, False), (4, True), (4, False)])
def test_factors_chosen_on_the_grid_beat_factors_rounded_to_it(trained, stable_factors, name, bits, per_channel):
    k = trained[name]
    kernel = cp.kernel_tensor(k)
    start = stable_factors(name)
    made = quantize_factors(kernel, start, bits=bits, per_channel=per_channel)
    assert made.error == pytest.approx(relative_error_of(k, made.factors), rel=1e-6)
    assert relative_error_of(k, made.factors) < relative_error_of(k, round_factors(start, bits, per_channel=per_channel))
    most = 2 ** (bits - 1) - 1
    for factor, channel in zip(made.factors, scale_axes(made.factors, per_channel), strict=True):
        steps = factor / grid_scales(factor, bits, channel)  # the scale a quantizer would derive
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-6)
        assert float(steps.abs().max()) == pytest.approx(most)


def test_admm_without_a_penalty_takes_the_steps_of_als(monkeypatch):
    k = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = cp.kernel_tensor(k)
    start = cp.random_factors(kernel.shape, 4, 0)
    steps, plain = [], []

    def recorded(*args):
        steps.append(cp.solve_ridge(*args))
        return steps[-1]

    def update(factors, mode, normal, product):
        plain.append(cp.least_squares_update(factors, mode, normal, product))
        return plain[-1]

    monkeypatch.setattr(quantized_cp, "solve_ridge", recorded)
    run_admm(kernel, start, scale_axes(start, True), bits=8, sweeps=3, penalty=0.0)
    factors = start
    for _ in range(3):
        factors, _ = cp.sweep_factors(kernel, factors, update)
    torch.testing.assert_close(steps, plain)


def test_compensated_rounding_is_no_worse_than_nearest_for_the_weighted_error():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(40, 12, generator=g, dtype=torch.float64)
    normal = a.T @ a + 5  # columns that go together
    wins = 0
    for seed in range(20):
        wanted = torch.randn(7, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        scale = grid_scales(wanted, 4, 0)
        near, made = round_to_grid(wanted, scale, 4), round_with_compensation(normal, wanted, scale, 4)
        lost = [float((((u - wanted) @ normal) * (u - wanted)).sum()) for u in (made, near)]
        wins += lost[0] < lost[1]
    assert wins >= 18


@pytest.mark.parametrize("bits", [8, 4])
def test_the_layers_are_on_the_grid_that_a_per_channel_quantizer_finds(bits):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, padding=1, groups=2)
    compact = factorize(layer, "cp_quantized", (9,), options={"bits": bits})
    most = 2 ** (bits - 1) - 1
    for factor in compact:
        w = factor.weight.detach().double().flatten(1)
        steps = w / (w.abs().amax(1, keepdim=True) / most)
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert relative_error(layer, "cp_quantized", compact) < 1


def test_the_error_falls_as_bits_or_rank_rise(trained):
    k = trained["layer2.0.conv1"]
    kernel = cp.kernel_tensor(k)
    errors = []
    for rank, bits in ((8, 4), (16, 4), (16, 8), (32, 8)):
        errors.append(quantize_factors(kernel, epc.decompose_stably(kernel, rank).factors, bits=bits).error)
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_a_zero_column_stays_zero_on_any_grid():
    factors = balance_factors(cp.random_factors((3, 4, 5), 3, 0))
    factors[0][:, 1] = 0
    for per_channel in (True, False):
        made = round_factors(factors, 4, per_channel=per_channel)
        assert all(bool(f.isfinite().all()) for f in made)
        assert not bool(made[0][:, 1].any())
