"""SVD of each of several slices of the input channels: a grouped convolution, then a pointwise layer that sums over the slices.

At the same rank per slice, each further slice lowers the error and adds r·out weights.

References:
    L. Liebenwein et al. Compressing neural networks: towards determining the optimal layer-wise decomposition. NeurIPS 2021.
"""

from typing import cast

import torch
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import (
    Convolution,
    DenseLayer,
    channels_per_group,
    copy_bias,
    grouped_kernel,
    kernel_size,
    pointwise_layer,
    spatial_layer,
    unsupported_reason,
    write_kernel,
)
from edgecompress.factorizations.protocol import Moments
from edgecompress.factorizations.tensors.lowrank import truncated_svd
from edgecompress.network.factors import Factors
from edgecompress.records import Record


class Options(Record, frozen=True, kw_only=True):
    """The number of `slices` of equal size into which the input channels of each group are divided."""

    slices: int = 2


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    if reason := unsupported_reason(layer):
        return reason
    if isinstance(layer, nn.Linear):
        return "Linear, grouped_svd takes convolutions; use svd"
    if channels_per_group(cast(DenseLayer, layer))[1] == 1:
        return "one input channel per group, there is nothing to slice"
    return None


def max_rank(layer: Convolution, options: Options) -> tuple[int]:
    out, inside = channels_per_group(layer)
    if options.slices < 1 or inside % options.slices:
        raise ConfigError(f"slices={options.slices}: does not divide the {inside} input channels of a group; take a divisor")
    return (min(out, inside // options.slices * torch.Size(kernel_size(layer)).numel()),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    (r,) = rank
    out, inside = channels_per_group(layer)
    bias = layer.bias is not None
    return Factors(
        spatial_layer(layer, inside, options.slices * r, slices=options.slices), pointwise_layer(layer, options.slices * r, out, bias=bias)
    )


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> None:
    first, last = compact
    r = channels_per_group(cast(DenseLayer, first))[0]
    pairs = [truncated_svd(part.flatten(1), r) for k in grouped_kernel(layer) for part in k.chunk(options.slices, dim=1)]
    write_kernel(first, torch.stack([right for _, right in pairs]))  # (groups · slices, r, in / slices · area)
    left = torch.stack([left for left, _ in pairs])  # (groups · slices, out, r)
    write_kernel(last, torch.unflatten(left, 0, (-1, options.slices)).transpose(1, 2))  # (groups, out, slices · r)
    copy_bias(last, layer)
