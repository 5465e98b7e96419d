"""SVD of a kernel unfolded to (out, in·area): the convolution with r output channels, then a pointwise layer.

References:
    X. Zhang et al. Accelerating very deep convolutional networks for classification and detection. TPAMI 38(10), 2016.
"""

from typing import cast

import torch
from torch import nn

from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import (
    Convolution,
    DenseLayer,
    channels_per_group,
    grouped_kernel,
    is_pointwise,
    kernel_size,
    pointwise_layer,
    spatial_layer,
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
    if is_pointwise(cast(DenseLayer, layer)):
        return "it mixes channels at one position only, channel_svd would be svd"
    return None


def max_rank(layer: Convolution, options: NoOptions) -> tuple[int]:
    out, inside = channels_per_group(layer)
    return (min(out, inside * torch.Size(kernel_size(layer)).numel()),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: NoOptions) -> Factors:
    (r,) = rank
    out, inside = channels_per_group(layer)
    return Factors(spatial_layer(layer, inside, r), pointwise_layer(layer, r, out, bias=layer.bias is not None))


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: NoOptions, moments: Moments | None) -> None:
    first, last = compact
    r = channels_per_group(cast(DenseLayer, first))[0]
    pairs = [truncated_svd(k.flatten(1), r, error_moments(layer, moments, i)) for i, k in enumerate(grouped_kernel(layer))]
    write_kernel(first, torch.stack([right for _, right in pairs]))
    write_kernel(last, torch.stack([left for left, _ in pairs]))
    correct_bias(layer, compact, moments)
