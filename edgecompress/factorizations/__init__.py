"""Low-rank forms of one layer. To add one, write a module with the functions of `Factorization` and list it in `METHODS`."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import (
    channel_svd,
    cp3,
    cp4,
    cp_epc,
    cp_quantized,
    grouped_svd,
    spatial_svd,
    svd,
    tensor_train,
    tucker2,
    tucker2_cp_epc,
)
from edgecompress.factorizations.blocks.chain import dense
from edgecompress.factorizations.blocks.cores import around, cored
from edgecompress.factorizations.blocks.layers import CONVOLUTIONS, Layer
from edgecompress.factorizations.moments import fits, readable
from edgecompress.factorizations.protocol import Factorization, Moments
from edgecompress.network.factors import Factors

__all__ = [
    "METHODS",
    "Factorization",
    "Factors",
    "FitWarning",
    "Moments",
    "errors",
    "factorize",
    "method_named",
    "options_of",
    "refactorize",
    "relative_error",
]

METHODS: Final[dict[str, Factorization[Any]]] = {
    "svd": svd,
    "spatial_svd": spatial_svd,
    "channel_svd": channel_svd,
    "grouped_svd": grouped_svd,
    "tucker2": tucker2,
    "cp3": cp3,
    "cp4": cp4,
    "cp_epc": cp_epc,
    "tucker2_cp_epc": tucker2_cp_epc,
    "cp_quantized": cp_quantized,
    "tensor_train": tensor_train,
}

POWER_STEPS: Final = 12  # of the power iteration; residuals have flat spectra, of which it finds the largest value to a few percent
PARTS: Final = 64  # of a weight, so that one in float64 is not copied whole
CORED: Final = ("svd", "tucker2")  # their outer factors mix channels only, so that decomposing their core decomposes the layer


class FitWarning(UserWarning):
    """A factorization is less than what was asked for, e.g. an iteration that did not converge; its message has the figures."""


def method_named(name: str) -> Factorization[Any]:
    """Look up a method.

    Raises:
        ConfigError: Unknown; lists the known.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]


def options_of(method: str, given: Mapping[str, Any] | None = None) -> Any:
    """Return the options of a method with the given ones.

    Raises:
        ConfigError: Unknown method or option, or a value of another type.
    """
    kind = method_named(method).Options
    known = kind.__struct_fields__
    for name in given or {}:
        if name not in known:
            raise ConfigError(f"{method}: unknown option {name!r}; {'choose from ' + ', '.join(known) if known else 'it has none'}")
    try:
        return msgspec.convert(dict(given or {}), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{method}: {error}; its defaults are {kind()}") from error


def factorize(
    layer: nn.Module,
    method: str,
    rank: tuple[int, ...],
    *,
    name: str = "layer",
    options: Mapping[str, Any] | None = None,
    moments: Moments | None = None,
    fit: bool = True,
) -> Factors:
    """Return the factors of `layer`, on its device and in its dtype; `layer` stays as it is.

    A `FitWarning` says when the factors are less than what was asked for.

    Args:
        name: For messages.
        options: Of the method, see its `Options`.
        moments: Of the layer's input, as `moments.collect` gives them: minimise the error of its output, not of its weight.
        fit: False leaves the factors unfitted, ready for `load_state_dict`.

    Raises:
        UnsupportedError: The method cannot take this layer; says why.
        ConfigError: The rank, an option or the moments do not fit the layer, or its weight is not finite, not floating or all zero.
    """
    form, chosen = _chosen(method, options, name)
    if reason := form.reject(layer):
        raise UnsupportedError(f"{name}: {reason}; leave it out or use another method")
    limit = _limit(form, layer, chosen, name)
    if len(rank) != len(limit) or any(not isinstance(r, int) or not 1 <= r <= m for r, m in zip(rank, limit, strict=True)):
        raise ConfigError(f"{name}: rank {rank} for {method}; each must be between 1 and {limit}")
    weight = cast(Tensor, layer.weight)
    if fit:
        check_values(layer, weight, name)
        _check_moments(layer, method, moments, name)
    with torch.random.fork_rng(devices=[]):  # new layers draw weights, the caller's random numbers stay what they would be
        compact = form.skeleton(layer, rank, chosen).to(weight)
    compact.train(layer.training)
    if fit and (note := form.fit(layer, compact, chosen, moments)):
        warnings.warn(f"{name}: {note}", FitWarning, stacklevel=2)
    return compact


def refactorize(
    compact: Factors,
    method: str,
    rank: tuple[int, ...],
    *,
    name: str = "layer",
    options: Mapping[str, Any] | None = None,
    moments: Moments | None = None,
) -> Factors:
    """Decompose an already decomposed layer, e.g. a fine-tuned one, further; `compact` stays as it is.

    A core between factors that mix channels is decomposed where `method` allows it, which costs little and builds no dense kernel;
    otherwise, and with moments, the dense layer that the factors equal is.

    Raises:
        UnsupportedError: The factors are not all Linears or convolutions, or the method cannot take the layer they equal.
        ConfigError: As `factorize`, or a rank above the present one.
    """
    form, chosen = _chosen(method, options, name)
    parts = compact if type(compact) is Factors else (compact,)  # others do more than run their factors one after another
    if strange := next((part for part in parts if type(part) is not nn.Linear and type(part) not in CONVOLUTIONS), None):
        raise UnsupportedError(f"{name}: {type(strange).__name__} among its factors; decompose the dense layer instead")
    split = cored(compact) if method in CORED and moments is None else None
    if split is None or form.reject(split.core):
        return factorize(dense(compact), method, rank, name=name, options=options, moments=moments)
    limit = _limit(form, split.core, chosen, name)
    if len(rank) == len(limit) and any(r > m for r, m in zip(rank, limit, strict=True)):
        raise ConfigError(f"{name}: rank {rank} is above its present {limit}; ask for less or decompose the dense layer")
    inner = factorize(split.core, method, rank, name=name, options=options)
    return around(split, inner).to(cast(Tensor, compact[0].weight)).train(compact.training)


def _chosen(method: str, options: Mapping[str, Any] | None, name: str) -> tuple[Factorization[Any], Any]:
    """Look up a method and its options, for the layer of that name."""
    try:
        return method_named(method), options_of(method, options)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _limit(form: Factorization[Any], layer: nn.Module, chosen: Any, name: str) -> tuple[int, ...]:
    try:
        return form.max_rank(layer, chosen)
    except ConfigError as error:  # an option that does not fit this layer
        raise ConfigError(f"{name}: {error}") from error


def check_values(layer: nn.Module, weight: Tensor, name: str) -> None:
    if weight.is_meta:
        raise ConfigError(f"{name}: it is on the meta device and has no values; load its weights first")
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise ConfigError(f"{name}: its weights are {kind}; factorize the floating-point model and quantize afterwards")
    if not all(bool(p.isfinite().all()) for p in layer.parameters()):
        raise ConfigError(f"{name}: its weights hold NaN or infinity; retrain or repair the checkpoint")
    if not bool(weight.any()):
        raise ConfigError(f"{name}: its weights are all zero; remove the layer or load a trained checkpoint")


def _check_moments(layer: nn.Module, method: str, moments: Moments | None, name: str) -> None:
    if moments is None:
        return
    aware = [m for m, form in METHODS.items() if form.DATA_AWARE]
    if method not in aware:
        raise ConfigError(f"{name}: {method} does not use moments of the input; leave them out or use {', '.join(aware)}")
    if not readable(cast(Layer, layer)):
        raise UnsupportedError(f"{name}: a transposed convolution reads differently at each phase; factorize it without moments")
    if not fits(cast(Layer, layer), moments):
        raise ConfigError(f"{name}: moments of shape {tuple(moments.second.shape)} are of another layer; collect them again")
    if not all(bool(part.isfinite().all()) for part in moments):
        raise ConfigError(f"{name}: moments hold NaN or infinity; collect them again from finite inputs")


def relative_error(layer: nn.Module, method: str, compact: Factors) -> float:
    """Return ‖W − Ŵ‖_F / ‖W‖_F, 0 for an all-zero weight that is reproduced."""
    return errors(layer, method, compact)[0]


@torch.no_grad()
def errors(layer: nn.Module, method: str, compact: Factors) -> tuple[float, float]:
    """Return ‖W − Ŵ‖ / ‖W‖ in the Frobenius norm and in the spectral norm of the matrices (out, all else).

    The spectral norms are found by power iteration, from below. Of an all-zero weight that is reproduced both are 0.
    """
    weight, rebuilt = cast(Tensor, layer.weight).flatten(1), METHODS[method].reconstruct(compact).flatten(1)
    difference = math.hypot(*(float((a - b).norm()) for a, b in zip(rebuilt.chunk(PARTS), weight.chunk(PARTS), strict=True)))
    norm = math.hypot(*(float(part.double().norm()) for part in weight.chunk(PARTS)))
    if norm == 0:
        return difference, difference
    return difference / norm, _spectral_norm(weight, rebuilt) / _spectral_norm(weight)


def _spectral_norm(weight: Tensor, less: Tensor | None = None) -> float:
    """Return the largest singular value of `weight` − `less`, of which no copy is made."""
    v = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(weight.device)
    norm = 0.0
    for _ in range(POWER_STEPS):
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        u = _times(weight, v) - (0 if less is None else _times(less, v))  # (out,)
        norm = float(u.norm())
        v = _times(weight.T, u) - (0 if less is None else _times(less.T, u))  # (all else,)
    return norm


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply in the matrix's own precision."""
    return (matrix @ vector.to(matrix.dtype)).double()
