"""Canonical polyadic decompositions: sweeps, sensitivity, error-preserving correction, border rank."""

import math
from itertools import pairwise

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.factorizations.tensors import cp, epc
from edgecompress.factorizations.tensors.sensitivity import balance_factors, factor_cost, orthogonal_sensitivity, sensitivity_of, total_norm

few = settings(max_examples=10, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3), st.integers(2, 3))


def normal_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_kernel(out=12, inside=10, size=3, seed=0):
    """Return a kernel whose singular values fall along every axis, as those of a trained layer do."""

    def falling(n, i):
        q, _ = torch.linalg.qr(normal_tensor(n, n, seed=seed + i))
        return q * torch.arange(1, n + 1, dtype=torch.float64) ** -0.8

    x = normal_tensor(out, inside, size * size, seed=seed)
    return torch.einsum("tsa,ut,vs,ba->uvb", x, falling(out, 1), falling(inside, 2), falling(size * size, 3)).reshape(
        out, inside, size, size
    )


def border_rank_tensor():
    """Return a∘a∘b + a∘b∘a + b∘a∘a, which has rank 3 and is the limit of tensors of rank 2."""
    a, b = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    x = sum(torch.einsum("t,s,k->tsk", *vectors) for vectors in ((a, a, b), (a, b, a), (b, a, a)))
    return x.reshape(2, 2, 2, 1)


def relative_error(k, factors):
    return float(torch.linalg.vector_norm(k.flatten(2) - cp.compose_tensor(factors).flatten(2)) / torch.linalg.vector_norm(k))


@pytest.fixture(scope="module")
def kernel_after_als():
    """Return a kernel, its layout for sweeps and the result of plain ALS."""
    k = smooth_kernel()
    kernel = cp.kernel_tensor(k)
    return k, kernel, cp.run_als(kernel, 16, sweeps=100)


# ---- sweeps


@few
@given(shape=shapes, rank=st.integers(1, 5), separable=st.booleans(), seed=st.integers(0, 9))
def test_a_sweep_passes_the_mttkrp_to_updates_and_returns_the_error(shape, rank, separable, seed):
    k = normal_tensor(*shape, seed=seed)
    kernel = cp.kernel_tensor(k, separable=separable)
    start = cp.random_factors(kernel.shape, rank, seed)
    seen = []

    def update(factors, mode, normal, product):
        x = kernel.x.reshape(kernel.shape)
        others = [f for i, f in enumerate(factors) if i != mode]
        unfolded = x.movedim(mode, 0).flatten(1)
        rows = cp.khatri_rao(others)
        torch.testing.assert_close(product, unfolded @ rows, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(normal, rows.T @ rows, rtol=1e-10, atol=1e-10)
        seen.append(mode)
        return cp.least_squares_update(factors, mode, normal, product)

    factors, square = cp.sweep_factors(kernel, start, update)
    assert set(seen) == set(range(len(kernel.shape)))
    assert math.sqrt(square / kernel.square) == pytest.approx(relative_error(k, factors), abs=1e-7)


def test_plain_sweeps_equal_those_of_tensorly():
    k = normal_tensor(5, 4, 3, 1)
    kernel = cp.kernel_tensor(k)
    start = cp.random_factors(kernel.shape, 3, 0)
    order = []

    def update(factors, mode, normal, product):
        order.append(mode)
        return cp.least_squares_update(factors, mode, normal, product)

    ours, _ = cp.sweep_factors(kernel, start, update)
    theirs = [f.numpy().copy() for f in start]
    x = kernel.x.numpy()
    for mode in order:
        gram = math.prod(f.T @ f for i, f in enumerate(theirs) if i != mode)
        product = tensorly.tenalg.unfolding_dot_khatri_rao(x, (None, theirs), mode)
        theirs[mode] = tensorly.solve(gram.T, product.T).T
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.from_numpy(b), rtol=1e-8, atol=1e-8)


def test_more_sweeps_of_als_never_return_a_larger_error():
    kernel = cp.kernel_tensor(smooth_kernel())
    errors = [cp.run_als(kernel, 9, sweeps=n, tolerance=0).error for n in (5, 10, 20, 40, 80)]
    assert all(later <= earlier for earlier, later in pairwise(errors))


def test_extrapolation_reaches_the_error_of_plain_sweeps_in_fewer():
    k = smooth_kernel(24, 20)
    kernel = cp.kernel_tensor(k)
    factors = cp.random_factors(kernel.shape, 24, 0)
    for _ in range(100):
        factors, square = cp.sweep_factors(kernel, factors, cp.least_squares_update)
    run = cp.run_als(kernel, 24, sweeps=100, tolerance=0, until=math.sqrt(square / kernel.square))
    assert run.sweeps < 60


def test_several_starts_are_no_worse_than_the_best_start():
    kernel = cp.kernel_tensor(smooth_kernel())
    alone = [cp.run_als(kernel, 6, seed=seed, sweeps=cp.START_SWEEPS).error for seed in range(4)]
    assert cp.run_als(kernel, 6, starts=4, sweeps=cp.START_SWEEPS).error == min(alone)


@few
@given(shape=shapes, separable=st.booleans(), seed=st.integers(0, 9))
def test_the_closed_form_is_exact(shape, separable, seed):
    k = normal_tensor(*shape, seed=seed)
    kernel = cp.kernel_tensor(k, separable=separable)
    for extra in (0, 2):
        rank = cp.exact_rank(kernel.shape) + extra
        factors = balance_factors(cp.exact_factors(kernel, rank))
        assert all(f.shape == (n, rank) for f, n in zip(factors, kernel.shape, strict=True))
        assert relative_error(k, factors) < 1e-14


def test_als_recovers_a_kernel_of_low_rank():
    factors = cp.random_factors((9, 8, 7), 3, 1)
    k = cp.compose_tensor(factors)
    run = cp.run_als(cp.kernel_tensor(k), 3, starts=3, sweeps=500, tolerance=0)
    assert run.converged
    assert relative_error(k, run.factors) < 1e-6


# ---- sensitivity


@pytest.mark.parametrize("shape", [(9, 6, 8), (3, 3, 5, 7)])
def test_the_sensitivity_predicts_the_error_that_noise_causes(shape):
    factors = cp.random_factors(shape, 12, 0)
    exact, sigma = cp.compose_tensor(factors), 1e-5
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for _ in range(2000):
        moved = [f + sigma * torch.randn(f.shape, generator=generator, dtype=f.dtype) for f in factors]
        total += float((cp.compose_tensor(moved) - exact).square().sum())
    assert total / 2000 / sigma**2 == pytest.approx(sensitivity_of(factors), rel=0.02)


@few
@given(rank=st.integers(1, 6), seed=st.integers(0, 99), order=st.integers(3, 5))
def test_balancing_keeps_the_tensor_and_is_the_least_sensitive_scaling(rank, seed, order):
    shape = (3, 2, 4, 5, 6)[-order:]
    factors = cp.random_factors(shape, rank, seed)
    made = balance_factors(factors)
    torch.testing.assert_close(cp.compose_tensor(made), cp.compose_tensor(factors), rtol=1e-12, atol=1e-12)
    norms = math.prod(f.norm(dim=0) for f in factors)
    closed = order * math.prod(shape) ** (1 / order) * float((norms ** (2 * (order - 1) / order)).sum())
    assert sensitivity_of(made) == pytest.approx(closed, rel=1e-9)
    for other in range(5):
        scale = 1 + 0.1 * normal_tensor(rank, seed=other)
        assert sensitivity_of([made[0] * scale, made[1] / scale, *made[2:]]) >= sensitivity_of(made)


def test_orthogonal_components_of_equal_norm_have_the_reference_sensitivity():
    unit = [torch.eye(n, 4, dtype=torch.float64) for n in (5, 6, 7)]
    factors = balance_factors([3 * unit[0], *unit[1:]])
    assert sensitivity_of(factors) == pytest.approx(orthogonal_sensitivity((5, 6, 7), 4, total_norm(factors)), rel=1e-12)
    assert total_norm(factors) == pytest.approx(4 * 9)


def test_balancing_permits_components_that_are_zero():
    factors = cp.random_factors((3, 4, 5), 3, 0)
    factors[1][:, 1] = 0
    made = balance_factors(factors)
    assert all(bool(f.isfinite().all()) for f in made)
    torch.testing.assert_close(cp.compose_tensor(made), cp.compose_tensor(factors))


# ---- correction


@pytest.mark.parametrize("cost", ["sensitivity", "norm"])
@pytest.mark.parametrize("slack", [1.0, 1.01, 1.2])
def test_correction_stays_within_the_error_and_never_raises_its_cost(kernel_after_als, cost, slack):
    k, kernel, run = kernel_after_als
    costs = [factor_cost(balance_factors(run.factors), cost)]
    for sweeps in range(1, 12):
        made = epc.lower_cost(kernel, run.factors, bound=slack * run.error, cost=cost, sweeps=sweeps, tolerance=0)
        assert relative_error(k, made.factors) <= slack * run.error * (1 + 1e-6)
        costs.append(factor_cost(made.factors, cost))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(costs))
    assert costs[-1] < (0.995 if slack == 1 else 0.9) * costs[0]
    assert total_norm(made.factors) <= total_norm(run.factors)


def test_correction_without_an_error_to_trade_keeps_separated_components():
    factors = balance_factors([torch.linalg.qr(normal_tensor(n, 3, seed=n)).Q for n in (6, 5, 7)])
    k = cp.compose_tensor(factors)
    made = epc.lower_cost(cp.kernel_tensor(k), factors, bound=1e-9, sweeps=5)
    torch.testing.assert_close(cp.compose_tensor(made.factors), k, rtol=1e-6, atol=1e-6)
    assert sensitivity_of(made.factors) == pytest.approx(sensitivity_of(factors), rel=1e-6)


def test_ridge_regression_without_a_penalty_equals_the_als_update():
    factors = cp.random_factors((9, 6, 8), 5, 0)
    product = normal_tensor(9, 5)
    gram = (factors[1].T @ factors[1]) * (factors[2].T @ factors[2])
    torch.testing.assert_close(
        cp.solve_ridge(gram, product, 1e-12), cp.least_squares_update(factors, 0, gram, product), rtol=1e-8, atol=1e-8
    )


def test_bounded_sensitivity_is_kept_and_the_error_never_rises(kernel_after_als):
    k, kernel, run = kernel_after_als
    limit = orthogonal_sensitivity(kernel.shape, 16, kernel.square)
    errors = []
    for sweeps in range(1, 12):
        made = epc.lower_error(kernel, run.factors, limit=limit, sweeps=sweeps, tolerance=0)
        assert sensitivity_of(made.factors) <= limit * (1 + 1e-6)
        errors.append(relative_error(k, made.factors))
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(errors))


def test_order_and_scale_of_the_components_do_not_matter(kernel_after_als):
    _, kernel, run = kernel_after_als
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    scale = 1 + normal_tensor(16).abs()
    shuffled = [f[:, order] for f in (run.factors[0] * scale, run.factors[1] / scale, run.factors[2])]
    ours, theirs = (epc.lower_cost(kernel, f, bound=1.01 * run.error, sweeps=10, tolerance=0) for f in (run.factors, shuffled))
    assert sensitivity_of(ours.factors) == pytest.approx(sensitivity_of(theirs.factors), rel=1e-3)


def test_approaching_from_a_random_start_is_less_sensitive_than_correcting_als(kernel_after_als):
    k, kernel, run = kernel_after_als
    corrected = epc.lower_cost(kernel, run.factors, bound=1.01 * run.error, sweeps=50)
    made = epc.decompose_stably(kernel, 16, stability=math.inf)
    assert relative_error(k, made.factors) <= 1.01 * cp.run_als(kernel, 16, starts=3, sweeps=100).error * (1 + 1e-6)
    assert sensitivity_of(made.factors) < sensitivity_of(corrected.factors) < sensitivity_of(balance_factors(run.factors))


# ---- border rank


def test_on_a_tensor_of_border_rank_als_diverges_and_the_stable_form_stays_bounded():
    k = border_rank_tensor()
    kernel = cp.kernel_tensor(k)
    norms, errors = [], []
    factors = cp.random_factors(kernel.shape, 2, 0)
    for sweep in range(1, 5001):
        factors, square = cp.sweep_factors(kernel, factors, cp.least_squares_update)
        factors = cp.even_norms(factors)
        if sweep in (200, 1000, 5000):
            norms.append(total_norm(factors) / kernel.square)
            errors.append(math.sqrt(square / kernel.square))
    assert errors[0] > errors[1] > errors[2]  # the error has no minimum,
    assert norms[2] > 2 * norms[1] > 4 * norms[0]  # because components grow without bound and cancel
    made = epc.decompose_stably(kernel, 2, sweeps=2000)
    assert sensitivity_of(made.factors) <= 1.5 * orthogonal_sensitivity(kernel.shape, 2, kernel.square) * (1 + 1e-6)
    assert total_norm(made.factors) <= 5 * kernel.square
    assert made.error > errors[2]
