"""Laws of tensor trains: what their cores stand for, how near it is, and what rounding does to them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.factorizations.tensors.tensor_train import common_ranks, contract, feasible, max_ranks, round_tt, spread, tt_svd


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


def test_contraction_is_the_definition():
    g = random_train((2, 3, 4, 2), (3, 5, 2))
    torch.testing.assert_close(contract(g), torch.einsum("aib,bjc,ckd,dle->ijkl", *g))
    batch = [torch.stack([core, 2 * core]) for core in g]
    torch.testing.assert_close(contract(batch), torch.stack([contract(g), 16 * contract(g)]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensor=tensors, epsilon=st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 0.1, 0.3, 0.9]))
def test_error_is_at_most_epsilon_and_cores_are_orthonormal(tensor, epsilon):
    a = tensor_of(*tensor)
    cores = tt_svd(a, epsilon=epsilon)
    assert (contract(cores) - a).norm() <= (epsilon + 1e-12) * a.norm()
    assert [core.shape[1] for core in cores] == list(a.shape)
    assert_left_orthonormal(cores)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tensor=tensors)
def test_a_train_is_exact_at_full_ranks(tensor):
    a = tensor_of(*tensor)
    torch.testing.assert_close(contract(tt_svd(a, ranks=max_ranks(a.shape))), a, rtol=0, atol=1e-10)


def test_epsilon_lowers_ranks():
    a = tensor_of((5, 6, 5), 0)
    ranks = [tuple(core.shape[2] for core in tt_svd(a, epsilon=e)) for e in (0.0, 0.01, 0.1, 0.5)]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) > 2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(tensor=tensors, epsilon=st.sampled_from([0.0, 1e-3, 0.1, 0.5]))
def test_rounding_is_within_epsilon_orthonormal_and_never_raises_a_rank(tensor, epsilon):
    sizes, seed = tensor
    train = random_train(sizes, [1 + (seed + k) % 5 for k in range(len(sizes) - 1)], seed)
    a, rounded = contract(train), round_tt(train, epsilon=epsilon)
    assert (contract(rounded) - a).norm() <= (epsilon + 1e-12) * a.norm()
    assert all(new.shape[2] <= old.shape[2] for new, old in zip(rounded, train, strict=True))
    assert_left_orthonormal(rounded)
    assert all(core.shape[2] <= 2 for core in round_tt(train, ranks=[2] * (len(sizes) - 1)))


def test_rounding_finds_the_ranks_that_a_train_needs():
    """The sum of a train and itself has doubled ranks on paper and the old ones in truth."""
    train = random_train((4, 5, 6, 4), (2, 3, 2))
    first, *inner, last = train
    zero = [torch.zeros_like(core) for core in inner]
    double = [torch.cat([torch.cat([c, z], 2), torch.cat([z, c], 2)]) for c, z in zip(inner, zero, strict=True)]
    rounded = round_tt([torch.cat([first, first], 2), *double, torch.cat([last, last])], epsilon=1e-10)
    assert [core.shape for core in rounded] == [core.shape for core in train]
    torch.testing.assert_close(contract(rounded), 2 * contract(train))


def test_rounding_to_ranks_is_as_good_as_decomposing_anew():
    train = random_train((4, 5, 6, 4), (4, 9, 4))
    a = contract(train)
    anew, rounded = (float((contract(t) - a).norm()) for t in (tt_svd(a, ranks=(2, 4, 3)), round_tt(train, ranks=(2, 4, 3))))
    assert rounded == pytest.approx(anew, rel=1e-9)


@pytest.mark.parametrize(
    ("ranks", "lowered"), [((1, 64, 64), (1, 6, 5)), ((4, 24, 5), (4, 24, 5)), ((4, 1, 5), (4, 1, 5)), ((3, 2, 1), (3, 2, 1))]
)
def test_ranks_beyond_what_neighbours_can_use_are_lowered(ranks, lowered):
    assert feasible(ranks, (4, 6, 7, 5)) == lowered
    assert feasible(max_ranks((4, 6, 7, 5)), (4, 6, 7, 5)) == max_ranks((4, 6, 7, 5))


def test_spreading_shares_the_norm_and_keeps_the_tensor():
    cores = tt_svd(tensor_of((5, 6, 4, 3), 0), ranks=(4, 6, 3))
    even = spread(cores)
    torch.testing.assert_close(contract(even), contract(cores), rtol=1e-12, atol=1e-14)
    for left, right in pairwise(even):
        torch.testing.assert_close(left.flatten(0, 1).norm(dim=0), right.flatten(1).norm(dim=1), rtol=0.01, atol=0)


def test_common_ranks_keep_each_tensor_within_epsilon():
    several = [tensor_of((5, 6, 4), 0), torch.randn(5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))]
    ranks = common_ranks(several, 0.2)
    for a in several:
        assert (contract(tt_svd(a, ranks=ranks)) - a).norm() <= 0.2 * a.norm()
