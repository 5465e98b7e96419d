"""Tucker-2 of a convolution kernel: pointwise layer → core with the layer's geometry → pointwise layer.

A factor at full rank would be a square rotation: it is left out, as part of the core.

References:
    Y.-D. Kim et al. Compression of deep convolutional neural networks for fast and low power mobile applications. ICLR 2016.
"""

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import (
    Convolution,
    DenseLayer,
    channels_per_group,
    copy_bias,
    grouped_kernel,
    is_pointwise,
    kernel_size,
    pointwise_layer,
    spatial_layer,
    unsupported_reason,
    write_kernel,
)
from edgecompress.factorizations.protocol import Moments, NoOptions
from edgecompress.factorizations.tensors import tucker
from edgecompress.network.factors import Factors

Options = NoOptions
DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    if reason := unsupported_reason(layer):
        return reason
    if is_pointwise(cast(DenseLayer, layer)):
        return "it mixes channels at one position only, Tucker-2 would be svd with one factor too many"
    if channels_per_group(cast(DenseLayer, layer)) == (1, 1):
        return f"groups={cast(Convolution, layer).groups}, a depthwise kernel has no channels to mix"
    return None


def max_rank(layer: Convolution, options: NoOptions) -> tuple[int, int]:
    out, inside = channels_per_group(layer)
    size = torch.Size(kernel_size(layer)).numel()
    return min(out, inside * size), min(inside, out * size)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: NoOptions) -> Factors:
    """Return up to three layers; the core has stride, padding, dilation and padding mode, the last layer has the bias."""
    r_out, r_in = rank
    out, inside = channels_per_group(layer)
    squeeze, expand, bias = r_in < inside, r_out < out, layer.bias is not None
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if squeeze:
        layers["squeeze"] = pointwise_layer(layer, inside, r_in)
    layers["core"] = spatial_layer(layer, r_in, r_out, bias=bias and not expand)
    if expand:
        layers["expand"] = pointwise_layer(layer, r_out, out, bias=bias)
    return Factors(layers)


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: NoOptions, moments: Moments | None) -> None:
    _write_factors(compact, [_fit_group(k.flatten(2), *_rank_of(compact)) for k in grouped_kernel(layer)])
    copy_bias(compact[-1], layer)


def _rank_of(compact: Factors) -> tuple[int, int]:
    return channels_per_group(cast(DenseLayer, compact.get_submodule("core")))


def _fit_group(k: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor, Tensor]:
    u_out, u_in = tucker.hooi(k, r_out, r_in)
    return tucker.core_tensor(k, u_out, u_in), u_out, u_in


def _write_factors(compact: Factors, groups: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Write (core, U_out, U_in) of each group into the layers."""
    parts = dict(compact.named_children())
    cores, outs, ins = zip(*groups, strict=True)
    write_kernel(parts["core"], torch.stack(cores))
    if "squeeze" in parts:
        write_kernel(parts["squeeze"], torch.stack([u.T for u in ins]))
    if "expand" in parts:
        write_kernel(parts["expand"], torch.stack(outs))
