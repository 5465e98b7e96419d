"""Truncated SVD of a Linear or pointwise convolution: W ≈ (U√Σ)(√Σ Vᵀ).

With moments of the input, the fit minimises the error of the output instead, and the bias absorbs the mean of that error.

References:
    C. Eckart, G. Young. The approximation of one matrix by another of lower rank. Psychometrika 1(3), 1936.
    X. Zhang et al. Accelerating very deep convolutional networks for classification and detection. TPAMI 38(10), 2016.
"""

from typing import cast

import torch
from torch import nn

from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import (
    TRANSPOSED,
    DenseLayer,
    channels_per_group,
    grouped_kernel,
    is_pointwise,
    kernel_size,
    pointwise_layer,
    unsupported_reason,
    write_kernel,
)
from edgecompress.factorizations.moments import correct_bias, error_moments
from edgecompress.factorizations.protocol import Moments, NoOptions
from edgecompress.factorizations.tensors.lowrank import truncated_svd
from edgecompress.network.factors import Factors

Options = NoOptions
DATA_AWARE = True
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    if reason := unsupported_reason(layer):
        return reason
    size = kernel_size(cast(DenseLayer, layer))
    if not is_pointwise(cast(DenseLayer, layer)):
        return f"kernel {'×'.join(map(str, size))}, svd takes Linear and kernels of size 1; spatial_svd and channel_svd take others"
    return None


def max_rank(layer: DenseLayer, options: NoOptions) -> tuple[int]:
    return (min(channels_per_group(layer)),)


def skeleton(layer: DenseLayer, rank: tuple[int, ...], options: NoOptions) -> Factors:
    """Return two pointwise layers; the first has stride and padding, in a transposed layer the last: the other gets the smaller map."""
    (r,) = rank
    out, inside = channels_per_group(layer)
    late = isinstance(layer, TRANSPOSED)
    has_bias = layer.bias is not None
    return Factors(
        pointwise_layer(layer, inside, r, with_geometry=not late), pointwise_layer(layer, r, out, bias=has_bias, with_geometry=late)
    )


@torch.no_grad()
def fit(layer: DenseLayer, compact: Factors, options: NoOptions, moments: Moments | None) -> None:
    first, last = compact
    r = channels_per_group(cast(DenseLayer, first))[0]
    pairs = [truncated_svd(k.flatten(1), r, error_moments(layer, moments, i)) for i, k in enumerate(grouped_kernel(layer))]
    write_kernel(first, torch.stack([right for _, right in pairs]))
    write_kernel(last, torch.stack([left for left, _ in pairs]))
    correct_bias(layer, compact, moments)
