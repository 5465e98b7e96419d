"""Laws of tensor trains: the tensor that cores represent, their error and their ranks."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.factorizations.tensors.tensor_train import (
    balance_cores,
    common_ranks,
    contract_cores,
    feasible_ranks,
    max_ranks,
    tt_svd,
)


def random_train(sizes, ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    joints = zip((1, *ranks), sizes, (*ranks, 1), strict=True)
    return [torch.randn(joint, dtype=torch.float64, generator=generator) for joint in joints]


def assert_left_orthonormal(cores):
    for core in cores[:-1]:
        flat = core.flatten(0, 1)
        torch.testing.assert_close(flat.T @ flat, torch.eye(flat.shape[1], dtype=flat.dtype), rtol=0, atol=1e-10)


tensors = st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))


def tensor_of(sizes, seed):
    """Return a random tensor with a falling spectrum, so that truncation has something to choose."""
    x = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for axis, n in enumerate(sizes):
        x = x * (0.5 ** torch.arange(n)).reshape(-1, *(1 for _ in sizes[axis + 1 :]))
    return x


def test_contracting_cores_equals_the_definition():
    g = random_train((2, 3, 4, 2), (3, 5, 2))
    torch.testing.assert_close(contract_cores(g), torch.einsum("aib,bjc,ckd,dle->ijkl", *g))
    batch = [torch.stack([core, 2 * core]) for core in g]
    torch.testing.assert_close(contract_cores(batch), torch.stack([contract_cores(g), 16 * contract_cores(g)]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensor=tensors, epsilon=st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 0.1, 0.3, 0.9]))
def test_error_is_at_most_epsilon_and_cores_are_orthonormal(tensor, epsilon):
    a = tensor_of(*tensor)
    cores = tt_svd(a, epsilon=epsilon)
    assert (contract_cores(cores) - a).norm() <= (epsilon + 1e-12) * a.norm()
    assert [core.shape[1] for core in cores] == list(a.shape)
    assert_left_orthonormal(cores)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensor=tensors)
def test_a_train_is_exact_at_full_ranks(tensor):
    a = tensor_of(*tensor)
    torch.testing.assert_close(contract_cores(tt_svd(a, ranks=max_ranks(a.shape))), a, rtol=0, atol=1e-10)


def test_epsilon_lowers_ranks():
    a = tensor_of((5, 6, 5), 0)
    ranks = [tuple(core.shape[2] for core in tt_svd(a, epsilon=e)) for e in (0.0, 0.01, 0.1, 0.5)]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) > 2


@pytest.mark.parametrize(
    ("ranks", "lowered"), [((1, 64, 64), (1, 6, 5)), ((4, 24, 5), (4, 24, 5)), ((4, 1, 5), (4, 1, 5)), ((3, 2, 1), (3, 2, 1))]
)
def test_ranks_higher_than_their_neighbours_permit_are_lowered(ranks, lowered):
    assert feasible_ranks(ranks, (4, 6, 7, 5)) == lowered
    assert feasible_ranks(max_ranks((4, 6, 7, 5)), (4, 6, 7, 5)) == max_ranks((4, 6, 7, 5))


def test_balancing_divides_the_norm_evenly_and_keeps_the_tensor():
    cores = tt_svd(tensor_of((5, 6, 4, 3), 0), ranks=(4, 6, 3))
    even = balance_cores(cores)
    torch.testing.assert_close(contract_cores(even), contract_cores(cores), rtol=1e-12, atol=1e-14)
    for left, right in pairwise(even):
        torch.testing.assert_close(left.flatten(0, 1).norm(dim=0), right.flatten(1).norm(dim=1), rtol=0.01, atol=0)


def test_common_ranks_keep_each_tensor_within_epsilon():
    several = [tensor_of((5, 6, 4), 0), torch.randn(5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))]
    ranks = common_ranks(several, 0.2)
    for a in several:
        assert (contract_cores(tt_svd(a, ranks=ranks)) - a).norm() <= 0.2 * a.norm()
