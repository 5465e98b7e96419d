"""Laws of every factorization; a new entry in METHODS is tested without new code."""

import copy
import math
from itertools import pairwise

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker
from torch import nn

from edgecompress.counting import cost_of, params_of, watching
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import METHODS, factorize, relative_error, tucker2

# Each: a layer with its input; the awkward ones are the point.
LAYERS = {
    "linear": lambda: (nn.Linear(12, 7), (12,)),
    "linear-no-bias-wide": lambda: (nn.Linear(5, 11, bias=False), (5,)),
    "linear-tokens": lambda: (nn.Linear(8, 6), (3, 8)),
    "linear-one-output": lambda: (nn.Linear(6, 1), (6,)),
    "linear-float64": lambda: (nn.Linear(6, 5, dtype=torch.float64), (6,)),
    "1x1": lambda: (nn.Conv2d(4, 16, 1), (4, 5, 5)),
    "1x1-no-bias-stride-2": lambda: (nn.Conv2d(8, 6, 1, stride=2, bias=False), (8, 7, 6)),
    "1x1-padded": lambda: (nn.Conv2d(6, 5, 1, padding=1), (6, 4, 4)),
    "1x1-padded-reflect": lambda: (nn.Conv2d(6, 5, 1, padding=1, padding_mode="reflect"), (6, 4, 4)),
    "1x1-grouped": lambda: (nn.Conv2d(8, 6, 1, groups=2), (8, 4, 4)),
    "3x3": lambda: (nn.Conv2d(6, 8, 3, padding=1), (6, 7, 7)),
    "3x3-no-bias-stride-2": lambda: (nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False), (8, 9, 8)),
    "3x3-dilation": lambda: (nn.Conv2d(6, 7, 3, dilation=2, padding=2), (6, 9, 9)),
    "3x3-same": lambda: (nn.Conv2d(6, 7, 3, padding="same"), (6, 8, 8)),
    "3x3-reflect": lambda: (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (6, 7, 7)),
    "3x3-circular": lambda: (nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular", bias=False), (6, 7, 7)),
    "3x5-stride-dilation-replicate": lambda: (
        nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(2, 3), dilation=(2, 1), padding_mode="replicate", bias=False),
        (6, 11, 12),
    ),
    "1x3": lambda: (nn.Conv2d(6, 8, (1, 3)), (6, 5, 7)),
    "3x3-one-input": lambda: (nn.Conv2d(1, 12, 3), (1, 8, 8)),
    "2x2-in-above-out-times-area": lambda: (nn.Conv2d(12, 2, 2), (12, 5, 5)),
    "3x3-float64": lambda: (nn.Conv2d(5, 6, 3, dtype=torch.float64), (5, 6, 6)),
    "depthwise": lambda: (nn.Conv2d(6, 6, 3, groups=6), (6, 7, 7)),
    "grouped": lambda: (nn.Conv2d(6, 8, 3, groups=2), (6, 7, 7)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3), (4, 9)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 6, 3), (4, 5, 5)),
}
REFUSED = {
    "svd": {
        "1x1-grouped": "groups=2",
        "depthwise": "kernel 3×3",
        "grouped": "kernel 3×3",
        "3x3": "kernel 3×3",
        "1x3": "kernel 1×3",
        "conv1d": "Conv1d",
        "transposed": "ConvTranspose2d",
    },
    "tucker2": {
        "linear": "Linear",
        "1x1": "kernel 1×1",
        "1x1-grouped": "kernel 1×1",
        "depthwise": "groups=6",
        "grouped": "groups=2",
        "conv1d": "Conv1d",
        "transposed": "ConvTranspose2d",
    },
}
BIG = {"svd": lambda: (nn.Linear(12, 9), (12,)), "tucker2": lambda: (nn.Conv2d(9, 8, 3, padding=1), (9, 6, 6))}


def take(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    return layer.eval(), torch.randn(3, *shape, dtype=layer.weight.dtype), shape


def halves(limit):
    return tuple(max(1, n // 2) for n in limit)


TAKEN = [(method, name) for method in METHODS for name in LAYERS if METHODS[method].reject(take(name)[0]) is None]
each = pytest.mark.parametrize(("method", "name"), TAKEN, ids=[f"{m}-{n}" for m, n in TAKEN])


def test_each_method_takes_several_layers():
    assert all(sum(m == method for m, _ in TAKEN) >= 6 for method in METHODS)


@each
def test_exact_at_max_rank(method, name):
    layer, x, _ = take(name)
    compact = factorize(layer, method, METHODS[method].max_rank(layer))
    torch.testing.assert_close(compact(x), layer(x), rtol=1e-4, atol=1e-5)
    assert relative_error(layer, method, compact) < 1e-6  # fp32 rounding of the factors


@each
def test_output_is_that_of_the_layer_with_the_reconstructed_weight(method, name):
    layer, x, _ = take(name)
    compact = factorize(layer, method, halves(METHODS[method].max_rank(layer)))
    one = copy.deepcopy(layer)
    with torch.no_grad():
        one.weight.copy_(METHODS[method].reconstruct(compact))
    assert compact(x).shape == layer(x).shape
    torch.testing.assert_close(compact(x), one(x), rtol=1e-4, atol=1e-5)


@each
def test_counts_on_the_skeleton_are_those_of_the_real_layers(method, name):
    layer, x, shape = take(name)
    rank = halves(METHODS[method].max_rank(layer))
    with torch.device("meta"):
        params, macs = cost_of(METHODS[method].skeleton(layer, rank), shape)
    compact = factorize(layer, method, rank)
    with watching(compact) as seen:
        compact(x[:1])
    assert (params, macs) == (params_of(compact), sum(one.macs for one in seen.values()))


@each
def test_the_layer_stays_as_it_is_and_shares_nothing(method, name):
    layer, x, _ = take(name)
    before, y = copy.deepcopy(layer.state_dict()), layer(x)
    compact = factorize(layer, method, METHODS[method].max_rank(layer))
    with torch.no_grad():
        for p in compact.parameters():
            p.fill_(7.0)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


@each
def test_dtype_mode_and_gradients(method, name):
    layer, x, _ = take(name)
    compact = factorize(layer.train(), method, halves(METHODS[method].max_rank(layer)))
    assert compact.training
    compact(x).square().sum().backward()
    for p in compact.parameters():
        assert p.dtype == layer.weight.dtype
        assert p.grad is not None
        assert bool(p.grad.isfinite().all())
        assert float(p.grad.abs().sum()) > 0


@each
def test_a_saved_state_loads_bit_for_bit_into_unfitted_factors(method, name):
    layer, x, _ = take(name)
    rank = halves(METHODS[method].max_rank(layer))
    fitted, again, empty = (factorize(layer, method, rank, fit=fit) for fit in (True, True, False))
    empty.load_state_dict(fitted.state_dict(), strict=True)
    assert torch.equal(empty(x), fitted(x))
    assert torch.equal(again(x), fitted(x))  # fit is deterministic


@pytest.mark.parametrize(("method", "name", "why"), [(m, n, why) for m, table in REFUSED.items() for n, why in table.items()])
def test_a_layer_that_cannot_be_taken_is_refused_with_the_reason(method, name, why):
    layer, _, _ = take(name)
    assert why in METHODS[method].reject(layer)
    with pytest.raises(UnsupportedError, match=rf"stem: .*{why}.*; leave it out or use another method"):
        factorize(layer, method, (1, 1), name="stem")


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_is_refused_or_factorized(method):
    for name in LAYERS:
        layer, x, _ = take(name)
        if METHODS[method].reject(layer) is None:
            limit = METHODS[method].max_rank(layer)
            for rank in {tuple(1 for _ in limit), halves(limit), limit}:
                assert METHODS[method].skeleton(layer, rank).to(x)(x).shape == layer(x).shape
        else:
            assert REFUSED[method].get(name) or METHODS[method].reject(layer)


@pytest.mark.parametrize("method", METHODS)
def test_error_falls_as_any_rank_rises(method):
    torch.manual_seed(0)
    layer, _ = BIG[method]()
    limit = METHODS[method].max_rank(layer)
    for axis, top in enumerate(limit):
        errors = [
            relative_error(layer, method, factorize(layer, method, tuple(r if a == axis else n for a, n in enumerate(limit))))
            for r in range(1, top + 1)
        ]
        assert all(later < earlier for earlier, later in pairwise(errors))
        assert errors[-1] < 1e-6


@settings(max_examples=15, deadline=None, derandomize=True)
@given(n=st.integers(1, 12), m=st.integers(1, 12), data=st.data())
def test_svd_error_is_the_singular_tail(n, m, data):
    r = data.draw(st.integers(1, min(n, m)))
    torch.manual_seed(n * 100 + m)
    layer = nn.Linear(n, m, dtype=torch.float64)
    s = torch.linalg.svdvals(layer.weight.detach())
    expected = float(s[r:].square().sum().sqrt() / s.square().sum().sqrt())
    assert relative_error(layer, "svd", factorize(layer, "svd", (r,))) == pytest.approx(expected, abs=1e-7)


def test_svd_factors_have_equal_ranges():
    layer, _, _ = take("linear")
    first, last = factorize(layer, "svd", (4,))
    torch.testing.assert_close(first.weight.norm(dim=1), last.weight.norm(dim=0))  # each singular value is split evenly


kernels = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(2, 3), st.integers(0, 99))


def kernel_layer(out, inside, kh, kw, seed):
    torch.manual_seed(seed)
    return nn.Conv2d(inside, out, (kh, kw), dtype=torch.float64)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shape=kernels, data=st.data())
def test_tucker2_squared_error_is_what_the_core_lacks(shape, data):
    layer = kernel_layer(*shape)
    rank = tuple(data.draw(st.integers(1, n)) for n in METHODS["tucker2"].max_rank(layer))
    compact = factorize(layer, "tucker2", rank)
    k, g = (float(w.detach().square().sum()) for w in (layer.weight, compact.core.weight))
    assert relative_error(layer, "tucker2", compact) == pytest.approx(math.sqrt(max(0.0, k - g) / k), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD with n_eigenvecs:UserWarning")  # tensorly, where a rank exceeds an unfolding
@settings(max_examples=20, deadline=None, derandomize=True)
@given(shape=kernels, data=st.data())
def test_hooi_is_no_worse_than_tensorly(shape, data):
    layer = kernel_layer(*shape)
    assert_no_worse_than_tensorly(layer, tuple(data.draw(st.integers(1, n)) for n in METHODS["tucker2"].max_rank(layer)))


@pytest.mark.parametrize("rank", [(4, 4), (8, 4), (4, 12), (8, 8), (12, 12)])
@pytest.mark.parametrize("width", [16, 24])
def test_hooi_is_no_worse_than_tensorly_on_wide_kernels(width, rank):
    assert_no_worse_than_tensorly(kernel_layer(width, 16, 3, 3, seed=width), rank)


def assert_no_worse_than_tensorly(layer, rank):
    ours = relative_error(layer, "tucker2", factorize(layer, "tucker2", rank))
    k = layer.weight.detach().numpy()
    (core, factors), _ = partial_tucker(k, rank=list(rank), modes=[0, 1], init="svd")
    theirs = tensorly.norm(k - tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])) / tensorly.norm(k)
    assert ours <= theirs + 1e-6


def test_hooi_sweeps_never_increase_the_error(monkeypatch):
    torch.manual_seed(0)
    k = torch.randn(10, 9, 3, 3, dtype=torch.float64)
    kept = []
    monkeypatch.setattr(tucker2, "TOLERANCE", -1.0)
    for sweeps in range(1, 9):
        monkeypatch.setattr(tucker2, "MAX_SWEEPS", sweeps)
        u_out, u_in = tucker2.hooi(k, 4, 3)
        for u in (u_out, u_in):
            torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype))
        kept.append(float(torch.einsum("oihw,or,is->rshw", k, u_out, u_in).square().sum()))
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(kept))
    assert kept[-1] > kept[0]


def test_tucker2_leaves_out_a_factor_at_full_rank():
    layer, _, _ = take("3x3")
    assert list(dict(factorize(layer, "tucker2", (8, 3)).named_children())) == ["squeeze", "core"]
    assert list(dict(factorize(layer, "tucker2", (4, 6)).named_children())) == ["core", "expand"]
    assert list(dict(factorize(layer, "tucker2", (8, 6)).named_children())) == ["core"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", ["zero", "negative", "above", "short", "long"])
def test_a_rank_that_does_not_fit_is_refused(method, wrong):
    layer, _ = BIG[method]()
    limit = METHODS[method].max_rank(layer)
    rank = {"zero": (0, *limit[1:]), "negative": (-1, *limit[1:]), "above": (limit[0] + 1, *limit[1:]), "short": (), "long": (*limit, 1)}
    with pytest.raises(ConfigError, match=r"conv7: rank .* for \w+; each must be between 1 and"):
        factorize(layer, method, rank[wrong], name="conv7")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_weight_that_is_not_finite_is_refused(method, value, where):
    layer, _ = BIG[method]()
    with torch.no_grad():
        getattr(layer, where).view(-1)[1] = value
    with pytest.raises(ConfigError, match="conv7: its weights hold NaN or infinity; retrain or repair"):
        factorize(layer, method, halves(METHODS[method].max_rank(layer)), name="conv7")
    assert factorize(layer, method, METHODS[method].max_rank(layer), fit=False)  # structure needs no values


@pytest.mark.parametrize("method", METHODS)
def test_an_all_zero_weight_is_reproduced(method):
    layer, shape = BIG[method]()
    nn.init.zeros_(layer.weight)
    compact = factorize(layer, method, halves(METHODS[method].max_rank(layer)))
    assert relative_error(layer, method, compact) == 0
    x = torch.randn(2, *shape)
    assert torch.equal(compact(x), layer(x))


def test_an_unknown_method_is_refused_with_the_known():
    with pytest.raises(ConfigError, match=f"unknown method 'cp9'; choose from {', '.join(METHODS)}"):
        factorize(nn.Linear(2, 2), "cp9", (1,))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_computed_from_others_is_refused(method, wrap):
    layer, _ = BIG[method]()
    assert METHODS[method].reject(wrap(layer)) is not None


def test_padding_of_a_1x1_kernel_adds_only_the_bias():
    layer, x, _ = take("1x1-padded")
    compact = factorize(layer, "svd", (3,))
    torch.testing.assert_close(compact(x)[:, :, 0, 0], layer.bias.expand(3, -1))
