"""Moments of a layer's input, and the factorizations that use them to minimise the error of the layer's output."""

import copy
import math

import pytest
import torch
from support.factorization_layers import LAYERS, LayerCase, accepts, build_case, error_of, half_rank, max_rank_of
from torch import nn
from torch.nn import functional as F

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import METHODS, Moments, factorize
from edgecompress.factorizations.moments import collect_moments, supports_moments

AWARE = [method for method, form in METHODS.items() if form.DATA_AWARE]
# Of layers below fp32 the rounding of the factors would decide.
READABLE = [name for name in LAYERS if supports_moments(build_case(name).layer) and build_case(name).x.dtype != torch.bfloat16]
TAKEN = [(method, name) for method in AWARE for name in READABLE if accepts(method, name)]
each = pytest.mark.parametrize(("method", "name"), TAKEN, ids=[f"{m}-{n}" for m, n in TAKEN])
even = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def moments_of(layer, *batches):
    return collect_moments(nn.Sequential(layer).eval(), ["0"], ((x,) for x in batches))["0"]


def correlated_inputs(name, n=40):
    """Return inputs unlike white noise: correlated channels of very different strength, with a mean."""
    layer, x, shape = build_case(name)
    x = torch.randn(n, *shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    x = x if isinstance(layer, nn.Linear) else x.movedim(1, -1)
    x = torch.logspace(0, -2, x.shape[-1], dtype=x.dtype) * (x + 0.7 * x.mean(-1, keepdim=True) + 0.5)
    return x if isinstance(layer, nn.Linear) else x.movedim(-1, 1)


def output_error(compact, layer, x):
    with torch.no_grad():
        return float((compact(x) - layer(x)).double().norm())


# --- moments


UNFOLDED = {
    "plain": lambda: nn.Conv2d(6, 4, 3),
    "everything": lambda: nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    "reflect": lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="reflect"),
    "circular-same": lambda: nn.Conv2d(6, 4, (3, 2), padding="same", padding_mode="circular", dilation=(2, 1)),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, stride=2),
    "1x1-stride": lambda: nn.Conv2d(6, 4, 1, stride=2, padding=1),
}


@pytest.mark.parametrize("name", UNFOLDED)
@pytest.mark.parametrize("split", [1, 3])
def test_moments_are_those_of_the_unfolded_input(name, split, monkeypatch):
    torch.manual_seed(0)
    layer, x = UNFOLDED[name](), torch.randn(6, 6, 8, 7)
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode={"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode))
    rows = F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride).double()  # (batch, in · area, positions)
    rows = rows.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)  # (groups, batch · positions, in / groups · area)
    monkeypatch.setattr("edgecompress.factorizations.moments.MAX_ROWS_BYTES", 30_000)  # several parts
    found = moments_of(layer, *x.chunk(split))
    torch.testing.assert_close(found.mean, rows.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.second, rows.mT @ rows / rows.shape[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", READABLE)
@even
def test_moments_predict_the_mean_and_the_norm_of_the_output(name):
    """E[y] = W E[x] + b and E‖Wx‖² = tr(W E[xxᵀ] Wᵀ), for 1-D, 3-D, Linears and tokens alike."""
    layer, x, _ = build_case(name)
    layer, x = layer.double(), x.double()
    found = moments_of(layer, x)
    with torch.no_grad():
        y = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
        y = y.flatten(0, -2) if layer.bias is None else y.flatten(0, -2) - layer.bias  # (positions, groups · out)
        w = layer.weight.detach().unflatten(0, (found.mean.shape[0], -1)).flatten(2)  # (groups, out, n)
    torch.testing.assert_close((w @ found.mean[..., None]).flatten(), y.mean(0))
    assert float((w @ found.second @ w.mT).diagonal(dim1=1, dim2=2).sum()) == pytest.approx(float(y.square().sum(1).mean()))


def test_a_padding_changed_after_construction_is_respected():
    layer = nn.Conv2d(3, 4, 3)
    layer.padding, layer.dilation = (2, 2), (2, 2)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = moments_of(nn.Conv2d(3, 4, 3, padding=2, dilation=2), x)
    torch.testing.assert_close(moments_of(layer, x), expected)


def test_an_input_without_batch_is_one_sample():
    torch.manual_seed(0)
    for layer, x in ((nn.Conv1d(3, 4, 3), torch.randn(3, 8)), (nn.Linear(5, 4), torch.randn(5))):
        torch.testing.assert_close(moments_of(layer, x), moments_of(layer, x[None]))


def test_moments_of_half_precision_inputs_do_not_overflow():
    x = torch.full((4, 8), 300.0, dtype=torch.bfloat16)
    assert moments_of(nn.Linear(8, 3, dtype=torch.bfloat16), x).second.min() == pytest.approx(300.0**2, rel=0.01)


def test_moments_cover_all_calls_of_a_layer_and_omit_layers_that_never_run():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(input=self.used(x))

    model = Twice()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = collect_moments(model, ["used", "unused"], [(x,)])
    assert set(found) == {"used"}
    torch.testing.assert_close(found["used"], moments_of(model.used, torch.cat([x, model.used(x).detach()])))


# --- data-aware factorizations


def plain_and_aware(method, name, x, rank=None):
    layer = build_case(name).layer
    rank = rank or half_rank(max_rank_of(method, layer))
    return layer, factorize(layer, method, rank), factorize(layer, method, rank, moments=moments_of(layer, x))


@each
@even
def test_the_output_error_on_the_calibration_inputs_is_no_larger(method, name):
    x = correlated_inputs(name)
    layer, plain, aware = plain_and_aware(method, name, x)
    assert {n: p.shape for n, p in aware.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert output_error(aware, layer, x) <= output_error(plain, layer, x) * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("method", AWARE)
def test_the_output_error_is_much_smaller_where_inputs_are_correlated(method):
    name = "1x1" if method == "svd" else "3x3"
    x = correlated_inputs(name)
    layer, plain, aware = plain_and_aware(method, name, x, rank=(2,))
    assert output_error(aware, layer, x) < 0.9 * output_error(plain, layer, x)


def degenerate_inputs(kind, x):
    x = x.clone()
    if kind == "dead-channel":
        x[:, 0] = 0
    elif kind == "equal-channels":
        x[:, 1:] = x[:, :1]
    elif kind == "constant":
        x[:] = 0.3
    elif kind == "one-sample":
        x = x[:1]
    elif kind == "tiny":
        x *= 1e-20
    return x * 0 if kind == "all-zero" else x


@pytest.mark.parametrize("kind", ["dead-channel", "equal-channels", "constant", "one-sample", "tiny", "all-zero"])
@pytest.mark.parametrize("share", ["half", "full"])
@pytest.mark.parametrize(
    ("method", "name"),
    [("svd", "1x1"), ("svd", "1x1-no-bias-stride-2"), *((m, n) for m in AWARE if m != "svd" for n in ("3x3", "grouped"))],
)
def test_degenerate_inputs_do_no_harm(method, name, share, kind):
    x = degenerate_inputs(kind, correlated_inputs(name, n=6))
    limit = max_rank_of(method, build_case(name).layer)
    layer, plain, aware = plain_and_aware(method, name, x, rank=limit if share == "full" else half_rank(limit))
    assert output_error(aware, layer, x) <= output_error(plain, layer, x) + 1e-5
    assert error_of(method, layer.weight, aware) < (1e-5 if share == "full" else 1)


@pytest.mark.parametrize("method", AWARE)
def test_directions_that_inputs_never_excite_are_approximated_as_without_moments(method):
    name = "1x1" if method == "svd" else "3x3"
    x = degenerate_inputs("all-zero", correlated_inputs(name, n=2))
    layer, plain, aware = plain_and_aware(method, name, x)
    assert error_of(method, layer.weight, aware) == pytest.approx(error_of(method, layer.weight, plain), rel=1e-5)


@each
@even
def test_factors_with_moments_are_exact_at_the_maximal_rank(method, name):
    layer, x, _ = build_case(name)
    compact = factorize(layer, method, max_rank_of(method, layer), moments=moments_of(layer, correlated_inputs(name)))
    assert error_of(method, layer.weight, compact) < (1e-10 if x.dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(compact(x), layer(x), rtol=1e-4, atol=1e-5)


@each
@even
def test_the_bias_absorbs_the_mean_error(method, name):
    x = correlated_inputs(name)
    layer, plain, aware = plain_and_aware(method, name, x)

    @torch.no_grad()
    def mean_error(compact):
        lost = (compact(x) - layer(x)).double()
        return float((lost if isinstance(layer, nn.Linear) else lost.movedim(1, -1)).flatten(0, -2).mean(0).abs().max())

    if layer.bias is None:
        assert not any(key.endswith("bias") for key in aware.state_dict())
    else:
        assert mean_error(aware) < 1e-5
        assert mean_error(plain) > 1e-4 or error_of(method, layer.weight, plain) < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_svd_with_moments_equals_the_optimum_by_whitening(bias):
    torch.manual_seed(0)
    layer = nn.Linear(9, 7, bias=bias, dtype=torch.float64)
    x = torch.randn(30, 9, dtype=torch.float64) @ torch.randn(9, 9, dtype=torch.float64) + 2
    read = x - x.mean(0) if bias else x  # a bias takes up the mean
    whitened = layer.weight.detach() @ torch.linalg.cholesky(read.T @ read)
    found = moments_of(layer, x)
    for r in range(1, 7):
        optimum = float(torch.linalg.svdvals(whitened)[r:].norm())
        assert output_error(factorize(layer, "svd", (r,), moments=found), layer, x) == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", [method for method in AWARE if method != "svd"])
def test_the_last_factor_is_optimal_given_the_first(method, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, 3, padding=1, bias=bias, dtype=torch.float64)
    x = torch.randn(8, 5, 7, 7, dtype=torch.float64).cumsum(2) + 1
    slopes = []
    for found in (moments_of(layer, x), None):
        compact = factorize(layer, method, (4,), moments=found)
        (compact(x) - layer(x)).square().mean().backward()
        slopes.append(float(compact[-1].weight.grad.norm()))
    assert slopes[0] < 1e-6 * slopes[1]


def test_a_tall_layer_is_exact_at_full_rank_even_with_few_input_directions():
    torch.manual_seed(0)
    layer = nn.Linear(5, 11, dtype=torch.float64)
    x = torch.randn(20, 1, dtype=torch.float64) @ torch.randn(1, 5, dtype=torch.float64)
    assert error_of("svd", layer.weight, factorize(layer, "svd", (5,), moments=moments_of(layer, x))) < 1e-10


# --- refusals


def refusal_of(layer, method, moments, message, error=ConfigError):
    with pytest.raises(error, match=message):
        factorize(layer, method, (1,) * len(max_rank_of(method, layer)), name="stem", moments=moments)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in AWARE])
def test_a_method_that_cannot_use_moments_is_refused_with_a_list_of_those_that_can(method):
    case: LayerCase = next(build_case(name) for name in LAYERS if accepts(method, name) and name in READABLE)
    found = moments_of(case.layer, case.x)
    refusal_of(case.layer, method, found, f"^stem: {method} does not use moments of the input; leave them out or use {', '.join(AWARE)}")


def test_moments_of_another_layer_are_refused():
    found = moments_of(nn.Linear(5, 4), torch.randn(3, 5))
    refusal_of(nn.Linear(6, 4), "svd", found, r"^stem: moments of shape \(1, 5, 5\) are of another layer; collect them again")
    grouped = moments_of(nn.Conv2d(6, 4, 1, groups=2), torch.randn(3, 6, 2, 2))
    refusal_of(nn.Conv2d(3, 4, 1), "svd", grouped, r"^stem: moments of shape \(2, 3, 3\) are of another layer")


def test_a_transposed_convolution_is_refused_with_moments():
    n = 4 * 9
    found = Moments(torch.eye(n, dtype=torch.float64)[None], torch.zeros(1, n, dtype=torch.float64))
    message = "^stem: a transposed convolution reads differently at each phase; factorize it without moments"
    refusal_of(nn.ConvTranspose2d(4, 5, 3), "channel_svd", found, message, UnsupportedError)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_of_inputs_that_are_not_finite_are_refused(value):
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    x[1, 2] = value
    refusal_of(layer, "svd", moments_of(layer, x), "^stem: moments hold NaN or infinity; collect them again from finite inputs")


def test_collecting_moments_leaves_the_model_unchanged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    before, x = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 6, 6)
    with pytest.raises(RuntimeError):
        collect_moments(model, ["0"], [(x,), (torch.randn(2, 9, 6, 6),)])  # the second batch does not fit
    assert not model[0]._forward_pre_hooks
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
