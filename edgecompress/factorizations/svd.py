"""Truncated SVD of a Linear or 1×1 convolution: W ≈ (U√Σ)(√Σ Vᵀ).

References:
    C. Eckart, G. Young. The approximation of one matrix by another of lower rank. Psychometrika 1(3), 1936.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.protocol import Factors, computed_weight

Dense = nn.Linear | nn.Conv2d


def reject(layer: nn.Module) -> str | None:
    if type(layer) is nn.Linear:
        return computed_weight(layer)
    if type(layer) is not nn.Conv2d:
        return f"{type(layer).__name__}, SVD takes Linear and 1×1 Conv2d"
    if layer.kernel_size != (1, 1):
        return f"kernel {layer.kernel_size[0]}×{layer.kernel_size[1]}, SVD takes 1×1"
    if layer.groups != 1:
        return f"groups={layer.groups}, SVD needs groups=1"
    return computed_weight(layer)


def max_rank(layer: Dense) -> tuple[int]:
    return (min(layer.weight.shape[:2]),)


def skeleton(layer: Dense, rank: tuple[int, ...]) -> Factors:
    """Stride and padding sit on the first factor, so that the second one works on the smaller map; the bias on the last."""
    (r,) = rank
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return Factors(nn.Linear(layer.in_features, r, bias=False), nn.Linear(r, layer.out_features, bias=bias))
    geometry: dict[str, Any] = {k: getattr(layer, k) for k in ("stride", "padding", "padding_mode")}
    return Factors(nn.Conv2d(layer.in_channels, r, 1, bias=False, **geometry), nn.Conv2d(r, layer.out_channels, 1, bias=bias))


@torch.no_grad()
def fit(layer: Dense, compact: Factors) -> None:
    """Split √Σ evenly, so that both factors have comparable quantization ranges."""
    first, last = cast("tuple[Dense, Dense]", tuple(compact))
    r = first.weight.shape[0]
    u, s, vh = torch.linalg.svd(layer.weight.double().flatten(1), full_matrices=False)
    root = s[:r].sqrt()
    first.weight.copy_((root[:, None] * vh[:r]).reshape(first.weight.shape))
    last.weight.copy_((u[:, :r] * root).reshape(last.weight.shape))
    if layer.bias is not None and last.bias is not None:
        last.bias.copy_(layer.bias)


def reconstruct(compact: Factors) -> Tensor:
    first, last = cast("tuple[Dense, Dense]", tuple(compact))
    product = last.weight.double().flatten(1) @ first.weight.double().flatten(1)  # (out, in)
    return product.reshape(*product.shape, *first.weight.shape[2:])
