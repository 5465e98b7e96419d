"""Properties of the matrix factorizations beyond the laws of all methods: singular tail, equal ranges, place of the stride."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.factorization_layers import error_of, half_rank, max_rank_of
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import factorize
from edgecompress.factorizations.blocks.layers import grouped_kernel
from edgecompress.factorizations.tensors.lowrank import truncated_svd


def matrices(method, layer):
    """Return the matrices of each group that the method truncates, unfolded as in its papers."""
    for k in grouped_kernel(layer).double():
        if method == "grouped_svd":
            yield from (part.flatten(1) for part in k.chunk(2, dim=1))
        elif method == "spatial_svd":
            yield k.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # (in · height, out · width)
        else:
            yield k.flatten(1)


@pytest.mark.parametrize("method", ["svd", "spatial_svd", "channel_svd", "grouped_svd"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(out=st.integers(1, 6), inside=st.integers(1, 3), size=st.tuples(st.integers(2, 3), st.integers(2, 3)), data=st.data())
def test_the_error_is_the_singular_tail(method, out, inside, size, data):
    groups, transposed = data.draw(st.integers(1, 2)), data.draw(st.booleans())
    torch.manual_seed(out * 100 + inside)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    inside *= 2  # grouped_svd cuts it in two
    layer = kind(groups * inside, groups * out, 1 if method == "svd" else size, groups=groups, dtype=torch.float64)
    (r,) = (data.draw(st.integers(1, n)) for n in max_rank_of(method, layer))
    tails = [torch.linalg.svdvals(m)[r:] for m in matrices(method, layer)]
    expected = float(torch.cat(tails).square().sum() / layer.weight.detach().square().sum())
    assert error_of(method, layer.weight, factorize(layer, method, (r,))) ** 2 == pytest.approx(expected, abs=1e-10)


def test_the_error_of_a_linear_is_its_singular_tail():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30, dtype=torch.float64)
    s = torch.linalg.svdvals(layer.weight.detach())
    for r in (1, 7, 29):
        expected = float((s[r:].square().sum() / s.square().sum()).sqrt())
        assert error_of("svd", layer.weight, factorize(layer, "svd", (r,))) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("shape", "r"), [((9, 14), 6), ((14, 9), 6), ((9, 14), 9), ((14, 9), 9)])
@pytest.mark.parametrize("aware", [False, True])
def test_components_have_equal_norms_on_both_sides(shape, r, aware):
    torch.manual_seed(0)
    matrix, second = torch.randn(shape), torch.eye(shape[1], dtype=torch.float64)
    left, right = truncated_svd(matrix, r, second if aware else None)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))
    torch.testing.assert_close(left.norm(dim=0).square(), torch.linalg.svdvals(matrix.double())[:r])  # √σ each


def test_factors_have_equal_ranges():
    torch.manual_seed(0)
    for layer, method in ((nn.Linear(12, 7), "svd"), (nn.Conv2d(5, 6, 3), "channel_svd"), (nn.Conv2d(5, 6, 3), "spatial_svd")):
        first, last = factorize(layer, method, (4,))
        torch.testing.assert_close(first.weight.flatten(1).norm(dim=1), last.weight.transpose(0, 1).flatten(1).norm(dim=1))


def test_a_matrix_of_low_rank_is_exact_at_its_rank():
    torch.manual_seed(0)
    layer = nn.Linear(20, 15, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(15, 3, dtype=torch.float64) @ torch.randn(3, 20, dtype=torch.float64))
    assert error_of("svd", layer.weight, factorize(layer, "svd", (3,))) < 1e-7


def test_singular_values_far_below_the_largest_are_found():
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 8, dtype=torch.float64))[0] for n in (8, 12))
    layer = nn.Linear(12, 8, dtype=torch.float64)
    s = 10.0 ** -torch.arange(0, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(u * s @ v.T)
    for r in range(1, 6):
        assert error_of("svd", layer.weight, factorize(layer, "svd", (r,))) == pytest.approx(10.0**-r, rel=1e-2)


def test_more_slices_lower_the_error_at_the_same_rank_per_slice():
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 10, 3)
    errors = [error_of("grouped_svd", layer.weight, factorize(layer, "grouped_svd", (3,), options={"slices": k})) for k in (1, 2, 3, 4, 6)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[0] == pytest.approx(error_of("channel_svd", layer.weight, factorize(layer, "channel_svd", (3,))))


def test_slices_that_do_not_divide_the_channels_are_refused():
    for slices in (0, -1, 5):
        with pytest.raises(ConfigError, match=rf"stem: slices={slices}: does not divide the 12 input channels of a group; take a divisor"):
            factorize(nn.Conv2d(12, 10, 3), "grouped_svd", (3,), name="stem", options={"slices": slices})


def test_the_first_factor_of_a_strided_1x1_layer_has_the_stride():
    """With the stride on the second factor, the first would compute four times as many outputs as needed."""
    layer = nn.Conv2d(8, 6, 1, stride=2, padding=1)
    first, last = factorize(layer, "svd", (3,))
    assert (first.stride, first.padding, last.stride, last.padding) == ((2, 2), (1, 1), (1, 1), (0, 0))
    first, last = factorize(nn.ConvTranspose2d(8, 6, 1, stride=2), "svd", (3,))
    assert (first.stride, last.stride) == ((1, 1), (2, 2))  # which makes the map larger


def test_each_spatial_factor_has_the_geometry_along_its_axes():
    layer = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2), padding_mode="circular", groups=2)
    first, last = factorize(layer, "spatial_svd", (3,))
    assert (first.kernel_size, first.stride, first.padding, first.dilation) == ((3, 1), (2, 1), (1, 0), (1, 1))
    assert (last.kernel_size, last.stride, last.padding, last.dilation) == ((1, 5), (1, 1), (0, 4), (1, 2))
    assert {first.padding_mode, last.padding_mode} == {"circular"}
    assert (first.groups, last.groups) == (2, 2)
    assert first.bias is None


def test_padding_of_a_1x1_kernel_adds_only_the_bias():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 5, 1, padding=1)
    compact = factorize(layer, "svd", (3,))
    torch.testing.assert_close(compact(torch.randn(3, 6, 4, 4))[:, :, 0, 0], layer.bias.expand(3, -1))


def test_halves_of_the_maximum_rank_cost_less_than_the_layer():
    for layer, method in ((nn.Linear(64, 64), "svd"), (nn.Conv2d(32, 32, 3), "spatial_svd"), (nn.Conv2d(32, 32, 3), "channel_svd")):
        rank = tuple(math.ceil(0.8 * n) for n in half_rank(max_rank_of(method, layer)))
        assert sum(p.numel() for p in factorize(layer, method, rank).parameters()) < sum(p.numel() for p in layer.parameters())
