"""Properties of Tucker-2 beyond the laws of all methods: the error is the norm missing in the core, and HOOI only lowers it."""

from itertools import pairwise

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.factorization_layers import error_of, max_rank_of
from tensorly.decomposition import partial_tucker
from torch import nn

from edgecompress.factorizations import factorize
from edgecompress.factorizations.tensors import tucker

kernels = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(2, 3), st.integers(0, 99)).filter(
    lambda shape: shape[:2] != (1, 1)  # no channels to mix
)


def kernel_layer(out, inside, kh, kw, seed):
    torch.manual_seed(seed)
    return nn.Conv2d(inside, out, (kh, kw), dtype=torch.float64)


def rank_pairs(data, layer):
    return tuple(data.draw(st.integers(1, n)) for n in max_rank_of("tucker2", layer))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=kernels, data=st.data())
def test_the_squared_error_is_the_norm_missing_in_the_core(shape, data):
    layer = kernel_layer(*shape)
    compact = factorize(layer, "tucker2", rank_pairs(data, layer))
    k, g = (float(w.detach().square().sum()) for w in (layer.weight, compact.core.weight))
    assert error_of("tucker2", layer.weight, compact) ** 2 == pytest.approx(max(0.0, k - g) / k, abs=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=kernels, data=st.data())
def test_the_outer_factors_are_orthonormal(shape, data):
    layer = kernel_layer(*shape)
    parts = dict(factorize(layer, "tucker2", rank_pairs(data, layer)).named_children())
    for u in [parts[name].weight.detach().flatten(1) for name in ("squeeze", "expand") if name in parts]:
        small = u if len(u) < u.shape[1] else u.T
        torch.testing.assert_close(small @ small.T, torch.eye(len(small), dtype=u.dtype))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=kernels, data=st.data())
def test_the_error_is_within_the_tails_of_both_unfoldings(shape, data):
    layer = kernel_layer(*shape)
    r_out, r_in = rank_pairs(data, layer)
    k = layer.weight.detach()
    tails = [
        float(torch.linalg.svdvals(k.movedim(a, 0).flatten(1))[r:].square().sum() / k.square().sum()) for a, r in ((0, r_out), (1, r_in))
    ]
    squared = error_of("tucker2", k, factorize(layer, "tucker2", (r_out, r_in))) ** 2
    assert max(tails) - 1e-12 <= squared <= sum(tails) + 1e-12


@pytest.mark.filterwarnings("ignore:Trying to compute SVD with n_eigenvecs:UserWarning")  # tensorly, where a rank exceeds an unfolding
@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=kernels, data=st.data())
def test_hooi_is_no_worse_than_tensorly(shape, data):
    layer = kernel_layer(*shape)
    assert_no_worse_than_tensorly(layer, rank_pairs(data, layer))


@pytest.mark.parametrize("rank", [(4, 4), (8, 4), (4, 12), (8, 8), (12, 12)])
@pytest.mark.parametrize("width", [16, 24])
def test_hooi_is_no_worse_than_tensorly_on_wide_kernels(width, rank):
    assert_no_worse_than_tensorly(kernel_layer(width, 16, 3, 3, seed=width), rank)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.5])
def test_hooi_is_no_worse_than_tensorly_on_kernels_with_a_spectrum(decay):
    layer = kernel_layer(40, 48, 3, 3, seed=0)
    s, t = (torch.arange(1, n + 1, dtype=torch.float64) ** -decay for n in (40, 48))
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (40, 48))
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("abhw,oa,ib->oihw", layer.weight, u * s, v * t))
    assert_no_worse_than_tensorly(layer, (10, 12))


def assert_no_worse_than_tensorly(layer, rank):
    ours = error_of("tucker2", layer.weight, factorize(layer, "tucker2", rank))
    k = layer.weight.detach().numpy()
    (core, factors), _ = partial_tucker(k, rank=list(rank), modes=[0, 1], init="svd")
    theirs = tensorly.norm(k - tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])) / tensorly.norm(k)
    assert ours <= theirs + 1e-6


def test_hooi_sweeps_never_increase_the_error(monkeypatch):
    torch.manual_seed(0)
    k = torch.randn(10, 9, 9, dtype=torch.float64)
    kept = []
    monkeypatch.setattr(tucker, "TOLERANCE", -1.0)
    for sweeps in range(1, 9):
        monkeypatch.setattr(tucker, "MAX_SWEEPS", sweeps)
        u_out, u_in = tucker.hooi(k, 4, 3)
        kept.append(float(tucker.core_tensor(k, u_out, u_in).square().sum()))
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(kept))
    assert kept[-1] > kept[0]


def test_a_kernel_of_low_rank_is_exact_at_its_rank():
    layer = kernel_layer(12, 10, 3, 3, seed=0)
    with torch.no_grad():
        core = torch.randn(4, 3, 3, 3, dtype=torch.float64)
        factors = torch.randn(12, 4, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
        layer.weight.copy_(torch.einsum("abhw,oa,ib->oihw", core, *factors))
    assert error_of("tucker2", layer.weight, factorize(layer, "tucker2", (4, 3))) < 1e-7
    assert error_of("tucker2", layer.weight, factorize(layer, "tucker2", (3, 3))) > 1e-2


@pytest.mark.parametrize(
    ("rank", "names"),
    [((8, 3), ["squeeze", "core"]), ((4, 6), ["core", "expand"]), ((8, 6), ["core"]), ((4, 3), ["squeeze", "core", "expand"])],
)
def test_a_factor_at_full_rank_is_left_out(rank, names):
    compact = factorize(nn.Conv2d(6, 8, 3), "tucker2", rank)
    assert list(dict(compact.named_children())) == names
    assert compact[-1].bias is not None
    assert sum(part.bias is not None for part in compact) == 1


def test_the_core_has_the_geometry_of_the_layer():
    layer = nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2, padding_mode="reflect")
    squeeze, core, expand = factorize(layer, "tucker2", (2, 2))
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(core, name) == getattr(layer, name)
    for mixer in (squeeze, expand):
        assert (mixer.kernel_size, mixer.stride, mixer.padding, mixer.groups) == ((1, 1), (1, 1), (0, 0), 2)
    assert core.weight.shape == (4, 2, 3, 2)
