"""SVD of a kernel unfolded to (out, in·area): the whole convolution at r channels, then a pointwise layer.

References:
    X. Zhang et al. Accelerating very deep convolutional networks for classification and detection. TPAMI 38(10), 2016.
"""

from typing import cast

import torch
from torch import nn

from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import (
    Convolution,
    Layer,
    area,
    channels,
    fill,
    is_pointwise,
    kernel,
    pointwise,
    spatial,
    unfit,
)
from edgecompress.factorizations.moments import correct_bias, seen_by
from edgecompress.factorizations.protocol import Moments, NoOptions
from edgecompress.factorizations.tensors.lowrank import truncated
from edgecompress.network.factors import Factors

Options = NoOptions
DATA_AWARE = True
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    if reason := unfit(layer):
        return reason
    if is_pointwise(cast(Layer, layer)):
        return "it mixes channels at one position only, channel_svd would be svd"
    return None


def max_rank(layer: Convolution, options: NoOptions) -> tuple[int]:
    out, inside = channels(layer)
    return (min(out, inside * torch.Size(area(layer)).numel()),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: NoOptions) -> Factors:
    (r,) = rank
    out, inside = channels(layer)
    return Factors(spatial(layer, inside, r), pointwise(layer, r, out, bias=layer.bias is not None))


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: NoOptions, moments: Moments | None) -> None:
    first, last = compact
    r = channels(cast(Layer, first))[0]
    pairs = [truncated(k.flatten(1), r, seen_by(layer, moments, i)) for i, k in enumerate(kernel(layer))]
    fill(first, torch.stack([right for _, right in pairs]))
    fill(last, torch.stack([left for left, _ in pairs]))
    correct_bias(layer, compact, moments)
