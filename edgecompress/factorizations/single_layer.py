"""Factorize one layer, or factorize the factors of an already factorized layer further."""

import warnings
from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations.blocks.chain import to_dense_layer
from edgecompress.factorizations.blocks.cores import join_core, split_core
from edgecompress.factorizations.blocks.layers import CONVOLUTIONS, DenseLayer
from edgecompress.factorizations.methods import METHODS, get_method, parse_options
from edgecompress.factorizations.moments import are_moments_of, supports_moments
from edgecompress.factorizations.protocol import Factorization, Moments
from edgecompress.network.factors import Factors

CORE_METHODS: Final = ("svd", "tucker2")  # their outer factors mix channels only, so decomposing their core decomposes the layer


class FitWarning(UserWarning):
    """A factorization fell short of the request, e.g. an iteration did not converge; the message has the figures."""


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
    """Return the factors of `layer`, on its device and in its dtype; `layer` stays unchanged.

    A `FitWarning` is issued when the factors fall short of the request.

    Args:
        name: Name of the layer in messages.
        options: Options of the method, see its `Options`.
        moments: Moments of the layer's input from `moments.collect_moments`: minimise the error of its output, not of its weight.
        fit: False leaves the factors unfitted, ready for `load_state_dict`.

    Raises:
        UnsupportedError: The method cannot factorize this layer; the message says why.
        ConfigError: The rank, an option or the moments do not fit the layer, or its weight is not finite, not floating or all zero.
    """
    form, chosen = _method_and_options(method, options, name)
    if reason := form.reject(layer):
        raise UnsupportedError(f"{name}: {reason}; leave it out or use another method")
    limit = _max_rank(form, layer, chosen, name)
    if len(rank) != len(limit) or any(not isinstance(r, int) or not 1 <= r <= m for r, m in zip(rank, limit, strict=True)):
        raise ConfigError(f"{name}: rank {rank} for {method}; each must be between 1 and {limit}")
    weight = cast(Tensor, layer.weight)
    if fit:
        check_weight(layer, weight, name)
        _check_moments(layer, method, moments, name)
    with torch.random.fork_rng(devices=[]):  # new layers draw random weights; the caller's random state must not change
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
    """Factorize an already factorized layer, e.g. a fine-tuned one, further; `compact` stays unchanged.

    Where `method` allows it, only the core between factors that mix channels is factorized, which costs little and builds no dense kernel.
    Otherwise, and with moments, the dense layer equal to the factors is factorized.

    Raises:
        UnsupportedError: The factors are not all Linears or convolutions, or the method cannot factorize the dense layer equal to them.
        ConfigError: As `factorize`, or a rank above the present one.
    """
    form, chosen = _method_and_options(method, options, name)
    parts = compact if type(compact) is Factors else (compact,)  # subclasses do more than run their factors one after another
    if strange := next((part for part in parts if type(part) is not nn.Linear and type(part) not in CONVOLUTIONS), None):
        raise UnsupportedError(f"{name}: {type(strange).__name__} among its factors; decompose the dense layer instead")
    split = split_core(compact) if method in CORE_METHODS and moments is None else None
    if split is None or form.reject(split.core):
        return factorize(to_dense_layer(compact), method, rank, name=name, options=options, moments=moments)
    limit = _max_rank(form, split.core, chosen, name)
    if len(rank) == len(limit) and any(r > m for r, m in zip(rank, limit, strict=True)):
        raise ConfigError(f"{name}: rank {rank} is above its present {limit}; ask for less or decompose the dense layer")
    inner = factorize(split.core, method, rank, name=name, options=options)
    return join_core(split, inner).to(cast(Tensor, compact[0].weight)).train(compact.training)


def _method_and_options(method: str, options: Mapping[str, Any] | None, name: str) -> tuple[Factorization[Any], Any]:
    """Return a method and its parsed options; errors name the layer."""
    try:
        return get_method(method), parse_options(method, options)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _max_rank(form: Factorization[Any], layer: nn.Module, chosen: Any, name: str) -> tuple[int, ...]:
    """Return the largest rank of a method for a layer; errors, e.g. of an option that does not fit the layer, name the layer."""
    try:
        return form.max_rank(layer, chosen)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def check_weight(layer: nn.Module, weight: Tensor, name: str) -> None:
    """Raise a ConfigError for a weight that cannot be factorized: without values, not floating, not finite or all zero."""
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
    """Raise an error for moments that the method cannot use, that belong to another layer or that are not finite."""
    if moments is None:
        return
    aware = [m for m, form in METHODS.items() if form.DATA_AWARE]
    if method not in aware:
        raise ConfigError(f"{name}: {method} does not use moments of the input; leave them out or use {', '.join(aware)}")
    if not supports_moments(cast(DenseLayer, layer)):
        raise UnsupportedError(f"{name}: a transposed convolution reads differently at each phase; factorize it without moments")
    if not are_moments_of(cast(DenseLayer, layer), moments):
        raise ConfigError(f"{name}: moments of shape {tuple(moments.second.shape)} are of another layer; collect them again")
    if not all(bool(part.isfinite().all()) for part in moments):
        raise ConfigError(f"{name}: moments hold NaN or infinity; collect them again from finite inputs")
