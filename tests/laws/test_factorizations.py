"""Laws of every factorization method on every layer that it accepts; a new entry in METHODS is tested without new code."""

import copy
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.factorization_layers import (
    LAYERS,
    accepts,
    build_case,
    error_of,
    factorize_anew,
    factorize_case,
    half_rank,
    is_quick,
    max_rank_of,
)
from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import METHODS, Factors, factorize, parse_options, reconstruction_errors, relative_error
from edgecompress.factorizations.blocks import chain
from edgecompress.network.counting import cost_of, params_of, record_layer_costs

# Warnings of iterations have tests of their own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::edgecompress.factorizations.FitWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

INEXACT_METHODS = {"cp_quantized": "its factors lie on a grid of 8 bits"}
MAX_RELATIVE_ERROR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}
# A higher rank may raise the relative error by so much, since an iteration ends in a local optimum.
MAX_RISE = {"cp3": 2e-3, "cp4": 2e-3, "cp_epc": 2e-3, "tucker2_cp_epc": 2e-3, "cp_quantized": 2e-3}

ACCEPTED_PAIRS = [(method, name) for method in METHODS for name in LAYERS if accepts(method, name)]
REJECTED_PAIRS = [(method, name) for method in METHODS for name in LAYERS if (method, name) not in ACCEPTED_PAIRS]


def parametrize_pairs(pairs):
    """Return pairs of a method and a layer as parameters, most of them slow."""
    return [pytest.param(m, n, id=f"{m}-{n}", marks=() if is_quick(m, n) else pytest.mark.slow) for m, n in pairs]


each = pytest.mark.parametrize(("method", "name"), parametrize_pairs(ACCEPTED_PAIRS))


@torch.no_grad()
def assert_equal_outputs(one, other, x):
    """Assert that two modules compute the same on `x`, up to the rounding of its dtype."""
    y, z = one(x), other(x)
    assert y.shape == z.shape
    assert float((y - z).double().norm()) <= MAX_RELATIVE_ERROR[x.dtype] * float(z.double().norm())


def is_plain_chain(compact):
    """Return whether the factors only run one after another, so that `chain` can merge them."""
    return type(compact) is Factors


@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_several_layers(method):
    assert sum(m == method for m, _ in ACCEPTED_PAIRS) >= 5


@pytest.mark.parametrize(("method", "name"), parametrize_pairs(case for case in ACCEPTED_PAIRS if case[0] not in INEXACT_METHODS))
def test_the_factors_are_exact_at_the_maximal_rank(method, name):
    layer, x, _ = build_case(name)
    compact = factorize_case(method, name, full=True)
    assert_equal_outputs(compact, layer, x)
    assert error_of(method, layer.weight, compact) < MAX_RELATIVE_ERROR[x.dtype]


@each
def test_the_output_equals_that_of_the_layer_with_the_reconstructed_weight(method, name):
    layer, x, _ = build_case(name)
    compact = copy.deepcopy(factorize_case(method, name)).double()  # in float64, since components that cancel amplify rounding
    assert_like_the_dense_layer(method, layer.double(), compact, x.double())


def assert_like_the_dense_layer(method, layer, compact, x):
    with torch.no_grad():
        layer.weight.copy_(METHODS[method].reconstruct(compact))
    assert_equal_outputs(compact, layer, x)
    if is_plain_chain(compact):
        one = chain.to_dense_layer(compact)
        assert type(one) is type(layer)
        assert one.training == compact.training
        assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in layer.named_parameters()}
        assert_equal_outputs(one, layer, x)


@each
def test_costs_counted_on_the_skeleton_equal_those_of_the_fitted_layers(method, name):
    layer, x, shape = build_case(name)
    with torch.device("meta"):
        skeleton = METHODS[method].skeleton(layer, half_rank(max_rank_of(method, layer)), parse_options(method)).to(x.dtype)
    params, macs = cost_of(skeleton.float(), shape)
    compact = factorize_case(method, name)
    with record_layer_costs(compact) as seen:
        compact(x[:1])
    assert (params, macs) == (params_of(compact), sum(one.macs for one in seen.values()))


@each
def test_factorizing_is_reproducible_and_changes_neither_the_layer_nor_the_random_state(method, name):
    layer, x, _ = build_case(name)
    before, y, random = copy.deepcopy(layer.state_dict()), layer(x), torch.get_rng_state()
    compact = factorize_anew(method, layer)
    assert torch.equal(torch.get_rng_state(), random)
    again = factorize_case(method, name).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in compact.state_dict().items())  # the same bits in every fit
    with torch.no_grad():
        for p in compact.parameters():
            p.fill_(7.0)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


@each
def test_parameters_are_trainable_contiguous_and_of_the_layers_dtype(method, name):
    layer, x, _ = build_case(name)
    compact = copy.deepcopy(factorize_case(method, name)).train()
    compact(x).square().sum().backward()
    for p in compact.parameters():
        assert p.is_contiguous()
        assert p.dtype == layer.weight.dtype
        assert p.grad is not None
        assert bool(p.grad.isfinite().all())
    assert all(float(part.weight.grad.abs().sum()) > 0 for part in compact.modules() if hasattr(part, "weight"))


@each
def test_the_bias_is_kept_on_the_last_layer(method, name):
    layer, _, _ = build_case(name)
    compact = factorize_case(method, name)
    biases = {key: value for key, value in compact.named_parameters() if key.endswith("bias")}
    if layer.bias is None:
        assert biases == {}
    else:
        ((key, value),) = biases.items()
        assert torch.equal(value, layer.bias)
        assert key == list(compact.state_dict())[-1] or not is_plain_chain(compact)


@each
def test_a_saved_state_loads_bit_for_bit_into_unfitted_factors(method, name):
    layer, x, _ = build_case(name)
    compact = factorize_case(method, name)
    empty = factorize_anew(method, layer, fit=False)
    empty.load_state_dict(safetensors.torch.load(safetensors.torch.save(compact.state_dict())), strict=True)
    assert torch.equal(empty(x), compact(x))


@pytest.mark.parametrize("method", METHODS)
def test_the_factors_take_over_the_training_mode_of_the_layer(method):
    layer = build_case(next(name for m, name in ACCEPTED_PAIRS if m == method)).layer
    for training in (True, False):
        assert factorize(layer.train(training), method, half_rank(max_rank_of(method, layer)), fit=False).training is training


def sampled_ranks(limit):
    """Return for each number of a rank some values from 1 to its maximum, with the other numbers at theirs."""
    for axis, top in enumerate(limit):
        yield [tuple(r if a == axis else n for a, n in enumerate(limit)) for r in sorted({1, *range(top, 0, -max(1, -(-top // 5)))})]


LARGER_LAYERS = {
    "linear": lambda: nn.Linear(12, 9),
    "3x3": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "grouped": lambda: nn.Conv2d(8, 6, (3, 2), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 5, 3, stride=2),
    "1x1": lambda: nn.Conv2d(8, 9, 1, stride=2),
    "conv1d": lambda: nn.Conv1d(6, 5, 3),
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(m, n, marks=() if n in ("linear", "3x3") else pytest.mark.slow)
        for m in METHODS
        for n, made in LARGER_LAYERS.items()
        if METHODS[m].reject(made()) is None
    ],
)
def test_error_falls_as_any_rank_rises(method, name):
    torch.manual_seed(0)
    layer = LARGER_LAYERS[name]()
    for ranks in sampled_ranks(max_rank_of(method, layer)):
        errors = [error_of(method, layer.weight, factorize(layer, method, rank)) for rank in ranks]
        share = MAX_RISE.get(method)
        for earlier, later in pairwise(errors):
            assert later < earlier if share is None else later <= earlier + share
        assert errors[-1] < (0.05 if method in INEXACT_METHODS else 1e-5)


@pytest.mark.parametrize(("method", "name"), REJECTED_PAIRS, ids=[f"{m}-{n}" for m, n in REJECTED_PAIRS])
def test_a_layer_that_a_method_rejects_is_refused_with_the_reason(method, name):
    layer, _, _ = build_case(name)
    if reason := METHODS[method].reject(layer):
        with pytest.raises(UnsupportedError) as refusal:
            factorize(layer, method, (1, 1), name="stem")
        assert str(refusal.value) == f"stem: {reason}; leave it out or use another method"
    else:
        with pytest.raises(ConfigError, match=r"^stem: \w+=\d.*; "):  # an option that does not fit the layer
            factorize(layer, method, (1, 1), name="stem")


REASONS = {
    ("svd", "3x3"): "kernel 3×3, svd takes Linear and kernels of size 1",
    ("svd", "conv3d"): "kernel 2×3×2",
    ("spatial_svd", "1x3-stride"): "kernel 1×3, spatial_svd needs two axes to split",
    ("spatial_svd", "linear"): "kernel of a Linear",
    ("channel_svd", "1x1"): "it mixes channels at one position only",
    ("grouped_svd", "linear"): "Linear, grouped_svd takes convolutions",
    ("grouped_svd", "depthwise"): "one input channel per group",
    ("tucker2", "depthwise"): "groups=6, a depthwise kernel has no channels to mix",
    ("tucker2", "1x1"): "it mixes channels at one position only",
    ("cp3", "depthwise"): "groups=6, a depthwise kernel is a CP form already",
    ("cp4", "1x3-stride"): "kernel 1×3",
}


@pytest.mark.parametrize(("method", "name", "why"), [(*case, why) for case, why in REASONS.items()])
def test_the_reason_for_a_rejection_names_the_property_of_the_layer(method, name, why):
    assert why in METHODS[method].reject(build_case(name).layer)


CONVOLUTION_CLASSES = {False: [nn.Conv1d, nn.Conv2d, nn.Conv3d], True: [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]}


@st.composite
def convolutions(draw):
    """Draw a convolution of any kind with any geometry, and an input for it."""
    transposed, axes, g = draw(st.booleans()), draw(st.integers(1, 3)), draw(st.integers(1, 2))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    size = per_axis(1, draw(st.sampled_from([1, 3 if axes < 3 else 2])))
    stride, dilation = per_axis(1, 3), per_axis(1, 2)
    options = {"stride": stride, "dilation": dilation, "groups": g, "bias": draw(st.booleans())}
    if transposed:
        options |= {"padding": per_axis(0, 1), "output_padding": tuple(draw(st.integers(0, s - 1)) for s in stride)}
    else:
        options |= {"padding": per_axis(0, 2), "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))}
        if draw(st.integers(0, 4)) == 0:
            options |= {"padding": "same", "stride": 1}
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = CONVOLUTION_CLASSES[transposed][axes - 1](
        g * draw(st.integers(1, 4)), g * draw(st.integers(1, 4)), size, **options, dtype=torch.float64
    )
    return layer, torch.randn(2, layer.in_channels, *(d * (k - 1) + 3 for d, k in zip(dilation, size, strict=True)), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=convolutions(), data=st.data())
def test_any_convolution_at_any_rank_is_refused_or_approximated(method, case, data):
    layer, x = case
    try:
        limit = max_rank_of(method, layer) if METHODS[method].reject(layer) is None else (1,)
        compact = factorize(layer, method, tuple(data.draw(st.integers(1, n)) for n in limit))
    except (UnsupportedError, ConfigError):  # refusals are tested above
        return
    assert relative_error(layer, method, compact) <= 1 + 1e-9
    assert_like_the_dense_layer(method, layer, compact, x)


@pytest.mark.parametrize(("method", "rank"), [("svd", (5,)), ("tucker2", (6, 4)), ("cp3", (9,))])
def test_the_spectral_error_equals_that_of_the_unfolded_weight(method, rank):
    layer = nn.Linear(40, 24) if method == "svd" else nn.Conv2d(10, 24, 3)
    compact = factorize(layer, method, rank)
    weight = layer.weight.detach().double().flatten(1)
    difference = METHODS[method].reconstruct(compact).detach().flatten(1) - weight
    wanted = float(torch.linalg.matrix_norm(difference, 2) / torch.linalg.matrix_norm(weight, 2))
    relative, spectral = reconstruction_errors(layer, method, compact)
    assert 0.9 * wanted <= spectral <= 1.1 * wanted  # both norms are estimated from below
    assert relative == pytest.approx(relative_error(layer, method, compact))
