"""Bad input of a factorization: the error names the layer, the fact and the remedy."""

import math

import pytest
import torch
from support.factorization_layers import half_rank, max_rank_of
from torch import nn
from torch.nn.utils import prune

from edgecompress.errors import ConfigError, EdgeCompressError, UnsupportedError
from edgecompress.factorizations import METHODS, factorize, parse_options

pytestmark = pytest.mark.filterwarnings("ignore::edgecompress.factorizations.FitWarning")


def layer_for(method, **options):
    """Return a layer that the method accepts."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, padding=1, **options)
    return conv if METHODS[method].reject(conv) is None else nn.Linear(12, 8, **options)


def refusal_of(layer, method, message, *, rank=None, error=ConfigError, **given):
    with pytest.raises(error) as refusal:
        factorize(layer, method, rank or half_rank(max_rank_of(method, layer)), name="stage2.conv7", **given)
    assert type(refusal.value) is error
    text = str(refusal.value)
    assert text.startswith("stage2.conv7: ")
    assert message in text
    assert "; " in text  # and a remedy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", ["zero", "negative", "above", "short", "long", "fraction"])
def test_a_rank_that_does_not_fit(method, wrong):
    layer = layer_for(method)
    limit = max_rank_of(method, layer)
    rank = {
        "zero": (0, *limit[1:]),
        "negative": (-1, *limit[1:]),
        "above": (*limit[:-1], limit[-1] + 1),
        "short": limit[1:] or (1, 1, 1),
        "long": (*limit, 1),
        "fraction": (1.5, *limit[1:]),
    }[wrong]
    refusal_of(layer, method, f"rank {rank} for {method}; each must be between 1 and {limit}", rank=rank)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_weight_that_is_not_finite(method, value, where):
    layer = layer_for(method)
    with torch.no_grad():
        getattr(layer, where).view(-1)[1] = value
    refusal_of(layer, method, "its weights hold NaN or infinity; retrain or repair the checkpoint")
    assert factorize(layer, method, max_rank_of(method, layer), fit=False)  # structure needs no values


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_all_zero(method):
    layer = layer_for(method)
    nn.init.zeros_(layer.weight)
    refusal_of(layer, method, "its weights are all zero; remove the layer or load a trained checkpoint")


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_on_the_meta_device(method):
    refusal_of(layer_for(method, device="meta"), method, "it is on the meta device and has no values; load its weights first")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool])
def test_integer_weights(method, dtype):
    layer = layer_for(method)
    layer.weight = nn.Parameter(torch.ones_like(layer.weight).to(dtype), requires_grad=False)
    kind = str(dtype).removeprefix("torch.")
    refusal_of(layer, method, f"its weights are {kind}; factorize the floating-point model and quantize afterwards")


ONE_WEIGHT = {
    "1×1×1": lambda: nn.Conv2d(1, 1, 1),
    "depthwise 1×1": lambda: nn.Conv2d(6, 6, 1, groups=6),
    "linear": lambda: nn.Linear(1, 1),
    "transposed": lambda: nn.ConvTranspose3d(1, 1, 1),
}
OTHERS = {
    "not a layer with weights": (nn.ReLU, "ReLU is neither a Linear nor a convolution of torch.nn itself"),
    "norm": (lambda: nn.BatchNorm2d(4), "BatchNorm2d is neither"),
    "embedding": (lambda: nn.Embedding(4, 3), "Embedding is neither"),
    "attention": (lambda: nn.MultiheadAttention(8, 2), "MultiheadAttention is neither"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "LazyConv2d is neither"),
    "subclass": (lambda: type("ScaledConv2d", (nn.Conv2d,), {})(4, 4, 3), "ScaledConv2d is neither"),
    "projection": (lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(6, 4), "NonDynamicallyQuantizableLinear is neither"),
    "weight norm of old": (lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), "its weight is computed from other parameters"),
    "spectral norm of old": (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), "its weight is computed from other parameters"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "its weight is computed from other parameters"),
    "pruned": (lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5), "its weight is computed from other parameters"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ONE_WEIGHT)
def test_a_layer_with_one_weight_per_group(method, name):
    refusal_of(ONE_WEIGHT[name](), method, "it has one weight per group, there is nothing to factorize", rank=(1,), error=UnsupportedError)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OTHERS)
def test_a_module_that_is_no_ordinary_layer(method, name):
    made, reason = OTHERS[name]
    refusal_of(made(), method, reason, rank=(1,), error=UnsupportedError)


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option(method):
    known = parse_options(method).__struct_fields__
    remedy = f"choose from {', '.join(known)}" if known else "it has none"
    refusal_of(layer_for(method), method, f"{method}: unknown option 'flavour'; {remedy}", options={"flavour": 1})


@pytest.mark.parametrize(("method", "option"), [(m, o) for m in METHODS for o in parse_options(m).__struct_fields__])
def test_an_option_of_another_type(method, option):
    refusal_of(layer_for(method), method, f"{method}: ", options={option: object()})


def test_an_unknown_method():
    with pytest.raises(ConfigError, match=f"^conv7: unknown method 'cp9'; choose from {', '.join(METHODS)}"):
        factorize(nn.Linear(2, 2), "cp9", (1,), name="conv7")
    with pytest.raises(ConfigError, match=r"^unknown method 'cp9'; choose from"):
        parse_options("cp9")


@pytest.mark.parametrize("method", METHODS)
def test_a_refusal_has_no_side_effect(method):
    """A refusal issues no warning, draws no random number and changes no weight, since a planner tries many layers."""
    layer = layer_for(method)
    before, random = layer.weight.detach().clone(), torch.get_rng_state()
    with pytest.raises(EdgeCompressError):
        factorize(layer, method, (0,) * len(max_rank_of(method, layer)))
    assert torch.equal(layer.weight, before)
    assert torch.equal(torch.get_rng_state(), random)
