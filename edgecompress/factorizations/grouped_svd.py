"""One SVD for each of several slices of the input channels: a grouped convolution, then a pointwise layer that adds the slices up.

At the same rank a slice, more slices mean a smaller error and r·out more weights each.

References:
    L. Liebenwein et al. Compressing neural networks: towards determining the optimal layer-wise decomposition. NeurIPS 2021.
"""

from typing import cast

import torch
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import Convolution, Layer, area, channels, fill, fill_bias, kernel, pointwise, spatial, unfit
from edgecompress.factorizations.protocol import Moments
from edgecompress.factorizations.tensors.lowrank import truncated
from edgecompress.network.factors import Factors
from edgecompress.records import Record


class Options(Record, frozen=True, kw_only=True):
    """`slices` of equal size the input channels of each group are cut into."""

    slices: int = 2


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    if reason := unfit(layer):
        return reason
    if isinstance(layer, nn.Linear):
        return "Linear, grouped_svd takes convolutions; use svd"
    if channels(cast(Layer, layer))[1] == 1:
        return "one input channel a group, there is nothing to slice"
    return None


def max_rank(layer: Convolution, options: Options) -> tuple[int]:
    out, inside = channels(layer)
    if options.slices < 1 or inside % options.slices:
        raise ConfigError(f"slices={options.slices}: does not divide the {inside} input channels of a group; take a divisor")
    return (min(out, inside // options.slices * torch.Size(area(layer)).numel()),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    (r,) = rank
    out, inside = channels(layer)
    bias = layer.bias is not None
    return Factors(spatial(layer, inside, options.slices * r, slices=options.slices), pointwise(layer, options.slices * r, out, bias=bias))


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> None:
    first, last = compact
    r = channels(cast(Layer, first))[0]
    pairs = [truncated(part.flatten(1), r) for k in kernel(layer) for part in k.chunk(options.slices, dim=1)]
    fill(first, torch.stack([right for _, right in pairs]))  # (groups · slices, r, in / slices · area)
    left = torch.stack([left for left, _ in pairs])  # (groups · slices, out, r)
    fill(last, torch.unflatten(left, 0, (-1, options.slices)).transpose(1, 2))  # (groups, out, slices · r)
    fill_bias(last, layer)
