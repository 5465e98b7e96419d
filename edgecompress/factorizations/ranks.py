"""Estimate a rank for a layer from its weights, or from a number of parameters.

A layer with several groups gets one rank for all of them. `rank_by_evbmf` returns the largest rank that a group needs; `rank_by_energy` and
`rank_by_parameter_rate` count all groups together.

References:
    Y.-D. Kim et al. Compression of deep convolutional neural networks for fast and low power mobile applications. ICLR 2016.
    J. Gusak et al. Automated multi-stage compression of neural networks. ICCV workshops 2019.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations.blocks.layers import Convolution, DenseLayer, channels_per_group, grouped_kernel, kernel_size
from edgecompress.factorizations.methods import get_method, parse_options, tensor_train
from edgecompress.factorizations.protocol import Factorization
from edgecompress.factorizations.single_layer import check_weight
from edgecompress.factorizations.tensors.lowrank import gram_matrix
from edgecompress.factorizations.tensors.vbmf import evbmf_rank

STEP_ROUNDING: Final = 1e-9  # rounding may put m · (step / steps) just below an integer
Unfoldings = tuple[list[Tensor], ...]  # for each number of a rank, the matrices of which so many components are kept


def rank_by_evbmf(layer: nn.Module, method: str, *, name: str = "layer", options: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """Return the rank whose components stand out from noise by empirical variational Bayes; at least 1.

    Raises:
        UnsupportedError: The method cannot take the layer, or is not made of unfoldings.
        ConfigError: An unknown method or option, or weights without a rank (not finite, not floating, all zero).
    """
    _, chosen, limit = _prepare_method(layer, method, name, options)
    unfoldings = _unfold(layer, method, name, chosen)
    found = (max(evbmf_rank(matrix) for matrix in matrices) for matrices in unfoldings)
    return tuple(min(max(1, r), m) for r, m in zip(found, limit, strict=True))


def rank_by_energy(
    layer: nn.Module, method: str, fraction: float, *, name: str = "layer", options: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Return the smallest rank that is certain to keep `fraction` of ‖W‖², so that relative_error² ≤ 1 - fraction.

    In a form with several ranks each may lose an equal part of the rest, since its error² is at most the sum of the unfoldings' losses.

    Raises:
        UnsupportedError: The method cannot take the layer, or is not made of unfoldings.
        ConfigError: As `evbmf`, or a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"{name}: fraction {fraction}; it must be above 0 and at most 1")
    _, chosen, limit = _prepare_method(layer, method, name, options)
    if method == "tensor_train":
        check_weight(layer, cast(Tensor, layer.weight), name)
        return tensor_train.ranks_within_error(cast(DenseLayer, layer), math.sqrt(1 - fraction), chosen)
    unfoldings = _unfold(layer, method, name, chosen)
    found = (_least_common_rank(matrices, (1 - fraction) / len(unfoldings)) for matrices in unfoldings)
    return tuple(min(r, m) for r, m in zip(found, limit, strict=True))


def rank_by_parameter_rate(
    layer: nn.Module, method: str, rate: float, *, name: str = "layer", options: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Return the largest rank at which the factors have at most 1/`rate` of the layer's parameters, counted on the skeleton.

    The numbers of a rank grow together: those of Tucker-2 as r_out = β r_in with β = max(0.8 out / in, 1), the rank of a CP core as
    2 r_out, others in proportion to the largest rank.

    Raises:
        UnsupportedError: The method cannot take the layer.
        ConfigError: An unknown method or option, a rate below 1, or one that no rank reaches.
    """
    if not 1 <= rate < math.inf:
        raise ConfigError(f"{name}: rate {rate}; it is parameters before over after, at least 1")
    form, chosen, limit = _prepare_method(layer, method, name, options)
    slopes = _growth_rates(layer, method, limit)
    steps = math.ceil(max(m / slope for m, slope in zip(limit, slopes, strict=True)) - STEP_ROUNDING)

    def rank(step: int) -> tuple[int, ...]:
        return tuple(min(m, max(1, int(slope * step + STEP_ROUNDING))) for slope, m in zip(slopes, limit, strict=True))

    def params(step: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in form.skeleton(layer, rank(step), chosen).parameters())

    budget = sum(p.numel() for p in layer.parameters()) / rate
    # When a number reaches its maximum, a factor may drop out and parameters with it; until the next number does, they only grow.
    starts = {1, *(next((step for step in range(1, steps + 1) if rank(step)[i] == m), 1) for i, m in enumerate(limit))}
    end = steps
    for start in sorted(starts, reverse=True):
        if fitting := bisect_right(range(start, end + 1), budget, key=params):
            return rank(start + fitting - 1)
        end = start - 1
    least = f"{method} has {params(1)} parameters at rank {rank(1)}, more than the {budget:.0f} allowed"
    raise ConfigError(f"{name}: rate {rate}; {least}; ask for a lower rate")


def _growth_rates(layer: nn.Module, method: str, limit: tuple[int, ...]) -> list[float]:
    """Return the growth rates of the numbers of a rank, relative to each other."""
    if not method.startswith("tucker2"):
        return [m / max(limit) for m in limit]
    out, inside = channels_per_group(cast(Convolution, layer))
    core = [2.0] if len(limit) == 3 else []  # at that rank a CP core has about half its parameters
    return [1.0, 1 / max(0.8 * out / inside, 1.0), *core]


Estimator = Callable[..., tuple[int, ...]]
ESTIMATORS: Final[dict[str, Estimator]] = {"evbmf": rank_by_evbmf, "energy": rank_by_energy, "parameter_rate": rank_by_parameter_rate}


def _prepare_method(
    layer: nn.Module, method: str, name: str, options: Mapping[str, Any] | None
) -> tuple[Factorization[Any], Any, tuple[int, ...]]:
    """Return a method, its parsed options and its largest rank for a layer; raise an error if it cannot factorize the layer."""
    form, chosen = get_method(method), parse_options(method, options)
    if reason := form.reject(layer):
        raise UnsupportedError(f"{name}: {reason}; leave it out or use another method")
    return form, chosen, form.max_rank(layer, chosen)


def _unfold(layer: nn.Module, method: str, name: str, options: Any) -> Unfoldings:
    """Return the unfoldings of a layer's weight whose ranks make up the rank of a method."""
    check_weight(layer, cast(Tensor, layer.weight), name)
    if method not in UNFOLDINGS:
        raise UnsupportedError(f"{name}: {method} is not made of matrices whose rank could be estimated; use parameter_rate")
    return UNFOLDINGS[method](cast(DenseLayer, layer), options)


def _least_common_rank(matrices: list[Tensor], loss: float) -> int:
    """Return the smallest common rank at which several matrices together lose at most `loss` of their squared norm."""
    spectra = [torch.linalg.eigvalsh(gram_matrix(m if m.shape[0] <= m.shape[1] else m.T)).clamp_min(0) for m in matrices]
    lost = torch.stack(spectra).sum(0).cumsum(0)  # by dropping the smallest components, from the smallest on
    return max(1, int((lost > loss * lost[-1]).sum()))


def _unfold_rows(layer: DenseLayer, options: Any) -> Unfoldings:
    return ([k.flatten(1) for k in grouped_kernel(layer)],)


def _unfold_slices(layer: DenseLayer, options: Any) -> Unfoldings:
    return ([part.flatten(1) for k in grouped_kernel(layer) for part in k.chunk(options.slices, dim=1)],)


def _unfold_long_axis(layer: DenseLayer, options: Any) -> Unfoldings:
    """Return the matrices (in · k, out · rest), with k the first axis on which the kernel is longer than 1."""
    axis = next(a for a, k in enumerate(kernel_size(layer)) if k > 1)
    return ([k.movedim((1, 2 + axis), (0, 1)).flatten(2).flatten(0, 1) for k in grouped_kernel(layer)],)


def _unfold_channels(layer: DenseLayer, options: Any) -> Unfoldings:
    return [k.flatten(1) for k in grouped_kernel(layer)], [k.transpose(0, 1).flatten(1) for k in grouped_kernel(layer)]


UNFOLDINGS: Final[dict[str, Callable[[DenseLayer, Any], Unfoldings]]] = {
    "svd": _unfold_rows,
    "channel_svd": _unfold_rows,
    "grouped_svd": _unfold_slices,
    "spatial_svd": _unfold_long_axis,
    "tucker2": _unfold_channels,
}
