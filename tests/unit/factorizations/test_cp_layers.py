"""The CP methods as layers: their warnings, their structure and their options."""

import warnings

import pytest
import torch
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, FitWarning, factorize, parse_options, relative_error
from edgecompress.network.counting import params_of


def make_conv(inside=8, out=10, size=3, seed=0, **kwargs):
    torch.manual_seed(seed)
    return nn.Conv2d(inside, out, size, padding=size // 2, **kwargs).eval()


def factorize_quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return factorize(*args, **kwargs)


def layer_with_cancelling_components():
    """Return a layer whose kernel is the limit of sums of two components that cancel each other (border rank 2, rank 3)."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    layer = nn.Conv1d(2, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(sum(torch.einsum("t,s,k->tsk", *v) for v in ((a, a, b), (a, b, a), (b, a, a))))
    return layer


@pytest.mark.parametrize("method", ["cp3", "cp4"])
def test_als_stopped_early_warns_with_its_error_and_sensitivity(method):
    with pytest.warns(FitWarning, match=r"conv7: ALS was stopped after 3 sweeps.*relative error 0\.\d+, sensitivity .*raise sweeps"):
        factorize(make_conv(), method, (9,), name="conv7", options={"sweeps": 3})


def test_components_that_cancel_cause_a_warning():
    with pytest.warns(FitWarning, match=r"times that of orthogonal components, so its components cancel; raise sweeps or use cp_epc"):
        factorize(layer_with_cancelling_components(), "cp3", (2,), options={"sweeps": 1000, "tolerance": 0.0})


def test_the_stable_form_of_components_that_cancel_is_bounded():
    plain, stable = (
        factorize_quietly(layer_with_cancelling_components(), method, (2,), options={"sweeps": 1000}) for method in ("cp3", "cp_epc")
    )
    biggest = [max(float(p.detach().abs().max()) for p in compact[:-1].parameters()) for compact in (plain, stable)]
    assert biggest[1] < 1.5 < biggest[0]


@pytest.mark.parametrize("method", ["cp3", "cp_epc"])
def test_converged_als_does_not_warn(method):
    layer = make_conv(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("tr,sr,kr->tsk", *(torch.randn(n, 2) for n in (6, 6, 9))).reshape(6, 6, 3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact = factorize(layer, method, (2,), options={"sweeps": 2000})
    assert relative_error(layer, method, compact) < 1e-3


def test_cp_epc_has_the_layers_of_cp3_or_cp4():
    layer = make_conv()
    for options, plain in (({}, "cp3"), ({"separable": True}, "cp4")):
        ours, theirs = factorize_quietly(layer, "cp_epc", (9,), options=options), factorize_quietly(layer, plain, (9,))
        assert str(ours) == str(theirs)


def test_a_bound_on_the_sensitivity_is_kept_and_raises_the_error():
    layer = make_conv(16, 16)
    errors = [relative_error(layer, "cp_epc", factorize_quietly(layer, "cp_epc", (40,), options={"stability": s})) for s in (0.2, 0.5, 1.5)]
    assert errors[0] > errors[1] > errors[2]


def test_more_slack_raises_the_error():
    layer = make_conv(12, 12)
    tight, loose = (relative_error(layer, "cp_epc", factorize_quietly(layer, "cp_epc", (20,), options={"slack": s})) for s in (0.0, 0.2))
    assert tight < loose <= 1.2 * tight * 1.05


@pytest.mark.parametrize(
    ("rank", "layers"),
    [
        ((10, 8, 9), ["before", "core", "after"]),  # full Tucker ranks: nothing but CP
        ((4, 4, 9), ["squeeze", "before", "core", "after", "expand"]),
        ((9, 7, 3), ["before", "core", "after"]),  # merging two neighbours is cheaper
        ((4, 8, 9), ["before", "core", "after", "expand"]),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_pointwise_neighbours_are_merged_where_that_is_cheaper(rank, layers, groups):
    layer = make_conv(8 * groups, 10 * groups, groups=groups)
    compact = factorize_quietly(layer, "tucker2_cp_epc", rank)
    assert list(dict(compact.named_children())) == layers
    inside, out, (r_out, r_in, r) = 8, 10, rank
    before = inside * r if "squeeze" not in layers else inside * r_in + r_in * r
    after = out * r if "expand" not in layers else r * r_out + r_out * out
    assert params_of(compact) == groups * (before + 9 * r + after) + 10 * groups
    assert before <= inside * r and after <= out * r  # noqa: PT018


def test_a_tucker_projection_is_kept_when_its_layer_is_merged():
    """The factors then equal the projection of the kernel on its leading subspaces."""
    layer = make_conv(8, 10)
    with torch.no_grad():
        u, v = torch.linalg.qr(torch.randn(10, 5)).Q, torch.linalg.qr(torch.randn(8, 5)).Q
        layer.weight.copy_(torch.einsum("tskl,tu,sv->uvkl", torch.randn(5, 5, 3, 3), u.T, v.T))
    compact = factorize_quietly(layer, "tucker2_cp_epc", (5, 5, 3))
    assert "squeeze" not in dict(compact.named_children())
    inside = compact.get_submodule("before").weight.detach().flatten(1)  # (r, in): rows within the span of v
    torch.testing.assert_close(inside @ v @ v.T, inside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["cp3", "cp4", "cp_epc", "tucker2_cp_epc", "cp_quantized"])
def test_a_group_of_zeros_stays_zero(method):
    layer = make_conv(8, 8, groups=2)
    with torch.no_grad():
        layer.weight[:4] = 0
    limit = METHODS[method].max_rank(layer, parse_options(method))
    compact = factorize_quietly(layer, method, tuple(min(n, 4) for n in limit))
    y = compact(torch.randn(2, 8, 6, 6)) - layer.bias[:, None, None]
    assert float(y[:, :4].detach().abs().max()) < 1e-6
    assert all(bool(p.isfinite().all()) for p in compact.parameters())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("cp3", {"swepes": 3}, "cp3: unknown option 'swepes'; choose from seed, starts, sweeps, tolerance"),
        ("cp_quantized", {"bits": 5}, "cp_quantized: .*5"),
        ("cp_epc", {"slack": "much"}, "cp_epc: .*float"),
        ("cp_epc", {"cost": "money"}, "cp_epc: .*money"),
        ("svd", {"seed": 1}, "svd: unknown option 'seed'; it has none"),
        ("cp3", {"sweeps": 0}, "cp3: .*sweeps"),
        ("cp_epc", {"starts": 0}, "cp_epc: .*starts"),
        ("cp_epc", {"stability": 0.0}, "cp_epc: .*stability"),
        ("cp_epc", {"slack": -0.1}, "cp_epc: .*slack"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(method, options, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(method, options)
