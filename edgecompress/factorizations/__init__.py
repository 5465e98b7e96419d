"""Low-rank forms of one layer. To add one, write a module with the functions of `Factorization` and list it in `METHODS`."""

from typing import Any, Final

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import svd, tucker2
from edgecompress.factorizations.protocol import Factorization, Factors

__all__ = ["METHODS", "Factorization", "Factors", "factorize", "method_named", "relative_error"]

METHODS: Final[dict[str, Factorization[Any]]] = {
    "svd": svd,
    "tucker2": tucker2,
}


def method_named(name: str) -> Factorization[Any]:
    """Look up a method.

    Raises:
        ConfigError: Unknown; lists the known.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]


def factorize(layer: nn.Module, method: str, rank: tuple[int, ...], *, name: str = "layer", fit: bool = True) -> Factors:
    """Return the factors of `layer`, on its device and in its dtype; `layer` stays as it is.

    Args:
        name: For messages.
        fit: False leaves the factors unfitted, ready for `load_state_dict`.

    Raises:
        UnsupportedError: The method cannot take this layer; says why.
        ConfigError: The rank does not fit the layer, or its weight holds NaN or infinity.
    """
    form = method_named(method)
    if reason := form.reject(layer):
        raise UnsupportedError(f"{name}: {reason}; leave it out or use another method")
    limit = form.max_rank(layer)
    if len(rank) != len(limit) or any(not 1 <= r <= m for r, m in zip(rank, limit, strict=True)):
        raise ConfigError(f"{name}: rank {rank} for {method}; each must be between 1 and {limit}")
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if fit and not all(bool(p.isfinite().all()) for p in layer.parameters()):
        raise ConfigError(f"{name}: its weights hold NaN or infinity; retrain or repair the checkpoint")
    compact = form.skeleton(layer, rank).to(weight)
    compact.train(layer.training)
    if fit:
        form.fit(layer, compact)
    return compact


@torch.no_grad()
def relative_error(layer: nn.Module, method: str, compact: Factors) -> float:
    """Return ‖W − Ŵ‖_F / ‖W‖_F, 0 for an all-zero weight that is reproduced."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    w = weight.double()
    difference = float(torch.linalg.vector_norm(w - METHODS[method].reconstruct(compact).double()))
    norm = float(torch.linalg.vector_norm(w))
    return difference / norm if norm > 0 else difference
