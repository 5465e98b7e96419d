"""Factorizing an already factorized, fine-tuned layer further."""

import copy

import pytest
import torch
from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import METHODS, Factors, Moments, factorize, refactorize
from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.cores import split_core
from edgecompress.factorizations.blocks.layers import grouped_kernel

F64 = {"dtype": torch.float64}
# Each: a layer, the method and rank it is decomposed by, the method and rank it is decomposed by again, the shape of an input.
REFACTORIZED = {
    "conv": (lambda: nn.Conv2d(12, 14, 3, stride=2, padding=1, **F64), "tucker2", (9, 8), "tucker2", (5, 4), (12, 7, 7)),
    "no-bias-dilated": (lambda: nn.Conv2d(12, 14, 3, dilation=2, bias=False, **F64), "tucker2", (9, 8), "tucker2", (5, 4), (12, 7, 7)),
    "reflect-grouped": (
        lambda: nn.Conv2d(12, 14, 3, groups=2, padding=1, padding_mode="reflect", **F64),
        "tucker2",
        (6, 5),
        "tucker2",
        (4, 2),
        (12, 7, 7),
    ),
    "transposed-grouped": (
        lambda: nn.ConvTranspose2d(12, 14, 3, groups=2, stride=2, output_padding=1, **F64),
        "tucker2",
        (6, 5),
        "tucker2",
        (4, 2),
        (12, 4, 4),
    ),
    "conv1d": (lambda: nn.Conv1d(12, 14, 3, padding="same", **F64), "tucker2", (9, 8), "tucker2", (5, 4), (12, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 8, 2, stride=(1, 2, 1), **F64), "tucker2", (6, 4), "tucker2", (4, 3), (6, 4, 4, 4)),
    "only-squeeze": (lambda: nn.Conv2d(12, 14, 3, **F64), "tucker2", (14, 8), "tucker2", (5, 4), (12, 7, 7)),
    "only-expand": (lambda: nn.Conv2d(12, 14, 3, **F64), "tucker2", (9, 12), "tucker2", (5, 4), (12, 7, 7)),
    "only-core": (lambda: nn.Conv2d(12, 14, 3, **F64), "tucker2", (14, 12), "tucker2", (5, 4), (12, 7, 7)),
    "one-rank-stays": (lambda: nn.Conv2d(12, 14, 3, **F64), "tucker2", (9, 8), "tucker2", (9, 4), (12, 7, 7)),
    "both-ranks-stay": (lambda: nn.Conv2d(12, 14, 3, **F64), "tucker2", (9, 8), "tucker2", (9, 8), (12, 7, 7)),
    "tucker2-of-channel-svd": (lambda: nn.Conv2d(12, 14, 3, **F64), "channel_svd", (9,), "tucker2", (5, 4), (12, 7, 7)),
    "linear": (lambda: nn.Linear(14, 12, **F64), "svd", (9,), "svd", (4,), (14,)),
    "linear-same-rank": (lambda: nn.Linear(14, 12, bias=False, **F64), "svd", (9,), "svd", (9,), (14,)),
    "1x1-stride": (lambda: nn.Conv2d(14, 12, 1, stride=2, padding=1, groups=2, **F64), "svd", (5,), "svd", (3,), (14, 5, 5)),
    "1x1-transposed": (lambda: nn.ConvTranspose2d(14, 12, 1, stride=2, output_padding=1, **F64), "svd", (9,), "svd", (4,), (14, 4, 4)),
}
DENSE = {
    "spatial": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular", **F64), "spatial_svd", (9,), "spatial_svd", (4,), (6, 7, 7)),
    "grouped-svd": (lambda: nn.Conv2d(8, 6, 3, groups=2, **F64), "channel_svd", (3,), "grouped_svd", (2,), (8, 7, 7)),
    "tucker2-of-slices": (lambda: nn.Conv2d(6, 8, 3, **F64), "grouped_svd", (5,), "tucker2", (4, 3), (6, 7, 7)),
    "tucker2-of-spatial": (lambda: nn.Conv2d(6, 8, 3, **F64), "spatial_svd", (9,), "tucker2", (4, 3), (6, 7, 7)),
    "channel-of-tucker2": (lambda: nn.Conv2d(6, 8, 3, **F64), "tucker2", (6, 4), "channel_svd", (4,), (6, 7, 7)),
    "tucker2-of-cp4": (lambda: nn.Conv2d(6, 8, 3, stride=2, **F64), "cp4", (9,), "tucker2", (4, 3), (6, 7, 7)),
    "cp4-of-cp4": (lambda: nn.Conv2d(6, 8, 3, stride=2, **F64), "cp4", (54,), "cp4", (54,), (6, 7, 7)),
    "svd-at-rank-1": (lambda: nn.Linear(1, 5, **F64), "svd", (1,), "svd", (1,), (1,)),
    "tucker2-at-rank-1": (lambda: nn.Conv2d(6, 8, 3, **F64), "tucker2", (1, 1), "tucker2", (1, 1), (6, 7, 7)),
}
each = pytest.mark.parametrize("name", [*REFACTORIZED, *DENSE])
iterations = pytest.mark.filterwarnings("ignore::edgecompress.factorizations.FitWarning")


def make_tuned_factors(name):
    """Return factors that are not orthonormal, as after fine-tuning, the arguments to refactorize them with, and an input."""
    made, method, rank, again, lower, shape = (REFACTORIZED | DENSE)[name]
    torch.manual_seed(0)
    compact = factorize(made(), method, rank).eval()
    with torch.no_grad():
        for part in compact:
            scale = torch.logspace(-0.5, 0.5, grouped_kernel(part).shape[1], dtype=torch.float64)
            grouped_kernel(part).mul_(scale.reshape(-1, *(1 for _ in range(grouped_kernel(part).ndim - 2))))
            part.weight.add_(0.05 * torch.randn_like(part.weight))
    return compact, again, lower, torch.randn(2, *shape, dtype=torch.float64)


def relative_error_of(compact, weight):
    return float((chain.reconstruct(compact) - weight).norm() / weight.norm())


@each
@iterations
def test_refactorizing_equals_factorizing_the_dense_layer(name):
    compact, method, rank, x = make_tuned_factors(name)
    weight = chain.reconstruct(compact)
    again, direct = refactorize(compact, method, rank), factorize(chain.to_dense_layer(compact), method, rank)
    assert relative_error_of(again, weight) == pytest.approx(relative_error_of(direct, weight), abs=1e-8)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in direct.named_parameters()}
    assert [(type(a), str(a)) for a in again] == [(type(b), str(b)) for b in direct]
    torch.testing.assert_close(again(x), chain.to_dense_layer(again)(x))
    assert all(p.is_contiguous() and p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("name", REFACTORIZED)
def test_the_dense_kernel_is_not_built_if_a_core_can_be_factorized(name, monkeypatch):
    compact, method, rank, _ = make_tuned_factors(name)
    largest = max(part.weight.numel() for part in compact)
    seen = []
    composed = chain.compose_kernels

    def watched(factors):
        seen.append(composed(factors))
        return seen[-1]

    monkeypatch.setattr(chain, "compose_kernels", watched)
    refactorize(compact, method, rank)
    assert max(made.numel() for made in seen) <= largest


@each
@iterations
def test_refactorizing_keeps_the_bias_and_the_given_factors(name):
    compact, method, rank, _ = make_tuned_factors(name)
    before = copy.deepcopy(compact.state_dict())
    again = refactorize(compact, method, rank)
    if compact[-1].bias is None:
        assert not any(key.endswith("bias") for key in again.state_dict())
    else:
        assert torch.equal(again[-1].bias, compact[-1].bias)
        assert sum(key.endswith("bias") for key in again.state_dict()) == 1
    with torch.no_grad():
        for p in again.parameters():
            p.fill_(7.0)
    torch.testing.assert_close(compact.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["conv", "reflect-grouped", "transposed-grouped", "linear", "1x1-stride"])
def test_truncating_the_core_of_factors_that_are_not_orthonormal_is_worse(name):
    """Compare with an implementation that factorizes the core alone, between outer factors that are not orthonormal."""
    compact, method, rank, _ = make_tuned_factors(name)
    weight = chain.reconstruct(compact)
    if method == "svd":
        naive = copy.deepcopy(compact)
        with torch.no_grad():  # keep the components whose factors are largest
            first, last = grouped_kernel(compact[0]).flatten(2), grouped_kernel(compact[1]).flatten(2)
            weak = (first.norm(dim=2) * last.norm(dim=1)).argsort(1)[:, : -rank[0]]
            for g, rows in enumerate(weak):
                grouped_kernel(naive[0])[g, rows] = 0
        products = [naive]
    else:
        squeeze, core, expand = compact
        inner = factorize(chain.to_dense_layer(Factors(core)), method, rank)
        products = [Factors(squeeze, *inner, expand)]
    assert all(
        relative_error_of(refactorize(compact, method, rank), weight) < 0.99 * relative_error_of(naive, weight) for naive in products
    )


@pytest.mark.parametrize("name", REFACTORIZED)
def test_a_split_core_has_orthonormal_outer_factors_and_equals_the_chain(name):
    compact, _, _, _ = make_tuned_factors(name)
    split = split_core(compact)
    parts = [part for part in split if part is not None]
    torch.testing.assert_close(chain.reconstruct(Factors(*parts)), chain.reconstruct(compact))
    for part, transposed in ((split.squeeze, False), (split.expand, True)):
        if part is not None:
            u = grouped_kernel(part).flatten(2)
            u = u.mT if transposed else u
            torch.testing.assert_close(u @ u.mT, torch.eye(u.shape[1], **F64).expand(len(u), -1, -1))


def test_refactorizing_keeps_dtype_and_training_mode():
    torch.manual_seed(0)
    compact = factorize(nn.Conv2d(12, 14, 3), "tucker2", (9, 8)).train()
    again = refactorize(compact, "tucker2", (5, 4))
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.training
    assert not refactorize(compact.eval(), "tucker2", (5, 4)).training


def test_refactorizing_with_moments_lowers_the_output_error():
    compact, _, rank, _ = make_tuned_factors("linear")
    x = torch.randn(50, 14, **F64) @ torch.randn(14, 14, **F64)
    found = Moments((x.T @ x / len(x))[None], x.mean(0)[None])
    with torch.no_grad():
        aware, plain = ((refactorize(compact, "svd", rank, moments=m)(x) - compact(x)).norm() for m in (found, None))
    assert aware < plain


# --- refusals


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("conv", (10, 4), r"rank \(10, 4\) is above its present \(9, 8\); ask for less or decompose the dense layer"),
        ("linear", (10,), r"rank \(10,\) is above its present \(9,\); ask for less"),
        ("conv", (0, 4), r"rank \(0, 4\) for tucker2; each must be between 1 and \(9, 8\)"),
        ("conv", (4,), r"rank \(4,\) for tucker2; each must be between 1 and \(9, 8\)"),
        ("spatial", (99,), r"rank \(99,\) for spatial_svd; each must be between 1 and"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(name, rank, message):
    compact, method, _, _ = make_tuned_factors(name)
    with pytest.raises(ConfigError, match=f"^stem: {message}"):
        refactorize(compact, method, rank, name="stem")


def test_a_method_that_cannot_take_the_dense_layer_says_why():
    compact, _, _, _ = make_tuned_factors("conv")
    with pytest.raises(UnsupportedError, match=r"^stem: kernel 3×3, svd takes Linear"):
        refactorize(compact, "svd", (3,), name="stem")
    with pytest.raises(ConfigError, match=f"^stem: unknown method 'cp9'; choose from {', '.join(METHODS)}"):
        refactorize(compact, "cp9", (3,), name="stem")
    with pytest.raises(ConfigError, match=r"^stem: svd: unknown option 'slices'; it has none"):
        refactorize(make_tuned_factors("linear")[0], "svd", (3,), name="stem", options={"slices": 2})


def test_factors_with_other_kinds_of_layers_are_refused():
    compact = Factors(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))
    with pytest.raises(UnsupportedError, match=r"^stem: ReLU among its factors; decompose the dense layer instead"):
        refactorize(compact, "svd", (1,), name="stem")


@pytest.mark.parametrize("name", ["conv", "linear", "spatial"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(name, value):
    for index in (0, -1):
        compact, method, rank, _ = make_tuned_factors(name)
        with torch.no_grad():
            compact[index].weight.view(-1)[1] = value
        with pytest.raises(ConfigError, match=r"^stem: its weights hold NaN or infinity"):
            refactorize(compact, method, rank, name="stem")
