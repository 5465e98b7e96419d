"""Truncated SVD of a Linear or pointwise convolution: W ≈ (U√Σ)(√Σ Vᵀ).

With moments of the input it minimises the error of the output instead, and the bias takes up what the mean input loses.

References:
    C. Eckart, G. Young. The approximation of one matrix by another of lower rank. Psychometrika 1(3), 1936.
    X. Zhang et al. Accelerating very deep convolutional networks for classification and detection. TPAMI 38(10), 2016.
"""

from typing import cast

import torch
from torch import nn

from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import TRANSPOSED, Layer, area, channels, fill, is_pointwise, kernel, pointwise, unfit
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
    size = area(cast(Layer, layer))
    if not is_pointwise(cast(Layer, layer)):
        return f"kernel {'×'.join(map(str, size))}, svd takes Linear and kernels of size 1; spatial_svd and channel_svd take others"
    return None


def max_rank(layer: Layer, options: NoOptions) -> tuple[int]:
    return (min(channels(layer)),)


def skeleton(layer: Layer, rank: tuple[int, ...], options: NoOptions) -> Factors:
    """Stride and padding sit where they leave the other factor the smaller map: on the first, or the last of a transposed one."""
    (r,) = rank
    out, inside = channels(layer)
    late = isinstance(layer, TRANSPOSED)
    return Factors(pointwise(layer, inside, r, place=not late), pointwise(layer, r, out, bias=layer.bias is not None, place=late))


@torch.no_grad()
def fit(layer: Layer, compact: Factors, options: NoOptions, moments: Moments | None) -> None:
    first, last = compact
    r = channels(cast(Layer, first))[0]
    pairs = [truncated(k.flatten(1), r, seen_by(layer, moments, i)) for i, k in enumerate(kernel(layer))]
    fill(first, torch.stack([right for _, right in pairs]))
    fill(last, torch.stack([left for left, _ in pairs]))
    correct_bias(layer, compact, moments)
