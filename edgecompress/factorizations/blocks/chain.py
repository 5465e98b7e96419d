"""Merge a chain of pointwise and spatial layers into one: compose their kernels, and build the dense layer with the composed kernel.

At most one kernel of a chain is longer than 1 along each spatial axis, so composing kernels needs no convolution of kernels.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks.layers import (
    CONVOLUTION_BY_AXES,
    CONVOLUTIONS,
    TRANSPOSED,
    Convolution,
    DenseLayer,
    group_count,
    grouped_kernel,
)
from edgecompress.network.factors import Factors


@torch.no_grad()
def compose_kernels(compact: Factors) -> Tensor:
    """Return the kernel `(groups, out, in, *area)`, float64, of the dense layer equal to a chain."""
    layers = cast("list[DenseLayer]", list(compact))
    g = math.gcd(*(group_count(layer) for layer in layers))
    total = _to_block_diagonal(grouped_kernel(layers[0]).double(), g)  # (g, out, in, *area)
    for layer in layers[1:]:
        k = torch.unflatten(grouped_kernel(layer).double(), 0, (g, -1))  # (g, h, out, in, *area), with h groups within each of the g
        h, t, r = k.shape[1:4]
        x = torch.unflatten(total, 1, (h, r))  # (g, h, r, in, *area)
        a, b = tuple(k.shape[4:]), tuple(x.shape[4:])
        product = torch.einsum("ghtrk,ghrsl->ghtskl", k.flatten(4) if a else k[..., None], x.flatten(4) if b else x[..., None])
        total = product.reshape(g, h * t, x.shape[3], *a, *b)
        axes = len(a)
        order = [axis for i in range(axes) for axis in (3 + i, 3 + axes + i)]
        total = total.permute(0, 1, 2, *order).reshape(g, h * t, x.shape[3], *(i * j for i, j in zip(a, b, strict=True)))
    return total


def _to_block_diagonal(k: Tensor, g: int) -> Tensor:
    """Return a kernel with more than `g` groups as one with `g` groups, block diagonal within each."""
    h = len(k) // g
    if h == 1:
        return k
    t, s = k.shape[1:3]
    full = k.new_zeros(g, h, t, h, s, *k.shape[3:])
    index = torch.arange(h)
    full[:, index, :, index] = torch.unflatten(k, 0, (g, h)).transpose(0, 1)
    return full.reshape(g, h * t, h * s, *k.shape[3:])


def reconstruct(compact: Factors) -> Tensor:
    """Return the weight of the dense layer equal to a chain, in that layer's shape, float64."""
    total = compose_kernels(compact)
    layers = list(compact)
    if isinstance(layers[0], nn.Linear):
        return total[0]
    if any(isinstance(layer, TRANSPOSED) for layer in layers):
        total = total.transpose(1, 2)
    return total.flatten(0, 1)


@torch.no_grad()
def to_dense_layer(compact: Factors) -> DenseLayer:
    """Return the dense layer equal to a chain, in the dtype of its factors."""
    layers = cast("list[DenseLayer]", list(compact))
    first, last = layers[0], layers[-1]
    bias = last.bias is not None
    made: DenseLayer
    if isinstance(first, nn.Linear):
        made = nn.Linear(first.in_features, cast(nn.Linear, last).out_features, bias=bias, device="meta")
    else:
        convs = cast("list[Convolution]", layers)
        kind: Any = next((type(c) for c in convs if isinstance(c, TRANSPOSED)), CONVOLUTION_BY_AXES[CONVOLUTIONS[type(first)]])
        made = kind(
            first.in_channels,
            cast(Convolution, last).out_channels,
            tuple(math.prod(k) for k in zip(*(c.kernel_size for c in convs), strict=True)),
            groups=math.gcd(*(c.groups for c in convs)),
            bias=bias,
            device="meta",
            **_merge_geometry(convs),
        )
    made.to_empty(device=first.weight.device).to(first.weight.dtype)
    made.weight.copy_(reconstruct(compact))
    if bias:
        cast(Tensor, made.bias).copy_(cast(Tensor, last.bias))
    return made.train(compact.training)


def _merge_geometry(convs: list[Convolution]) -> dict[str, Any]:
    """Return the combined stride, padding and so on of convolutions, of which at most one is not neutral along each axis."""
    made: dict[str, Any] = {
        "stride": tuple(math.prod(v) for v in zip(*(c.stride for c in convs), strict=True)),
        "dilation": tuple(math.prod(v) for v in zip(*(c.dilation for c in convs), strict=True)),
        "padding_mode": next((c.padding_mode for c in convs if c.padding_mode != "zeros"), "zeros"),
    }
    word = next((c.padding for c in convs if isinstance(c.padding, str)), None)
    made["padding"] = word or tuple(sum(v) for v in zip(*(cast("tuple[int, ...]", c.padding) for c in convs), strict=True))
    transposed = [c for c in convs if isinstance(c, TRANSPOSED)]
    if transposed:
        made["output_padding"] = tuple(sum(v) for v in zip(*(c.output_padding for c in transposed), strict=True))
    return made
