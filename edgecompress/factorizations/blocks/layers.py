"""Convert dense layers to kernels and back, with their strides, paddings, groups and transposed weights.

A *kernel* has the shape `(groups, out, in, *area)`, with `out` and `in` counted within a group; the area of a Linear is empty. All low-rank
forms of convolutions are chains of *pointwise* layers, which mix channels, and *spatial* layers, which have the dense layer's geometry.
"""

import math
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
DenseLayer = nn.Linear | Convolution

CONVOLUTIONS: Final[dict[type[nn.Module], int]] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTION_BY_AXES: Final = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def unsupported_reason(layer: nn.Module) -> str | None:
    """Return why no method can factorize `layer`, None for an ordinary Linear or convolution with several weights in each group."""
    known = type(layer) is nn.Linear or type(layer) in CONVOLUTIONS
    if parametrize.is_parametrized(layer) or (known and not isinstance(layer.weight, nn.Parameter)):
        return "its weight is computed from other parameters (weight norm, pruning), make it an ordinary one first"
    if not known:
        return f"{type(layer).__name__} is neither a Linear nor a convolution of torch.nn itself"
    if cast(DenseLayer, layer).weight.numel() == group_count(cast(DenseLayer, layer)):
        return "it has one weight per group, there is nothing to factorize"
    return None


def kernel_size(layer: DenseLayer) -> tuple[int, ...]:
    """Return the kernel size of a convolution, `()` for a Linear."""
    return () if isinstance(layer, nn.Linear) else tuple(layer.kernel_size)


def is_pointwise(layer: DenseLayer) -> bool:
    """Return whether `layer` is a Linear or a convolution with a kernel of size 1."""
    return math.prod(kernel_size(layer)) == 1


def is_channel_mixing(layer: DenseLayer) -> bool:
    """Return whether `layer` maps each position to the same position: it is pointwise, without stride or padding."""
    if isinstance(layer, nn.Linear):
        return True
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return is_pointwise(layer) and set(layer.stride) == {1} and not padded and not any(layer.output_padding)


def group_count(layer: DenseLayer) -> int:
    """Return the number of groups of a convolution, 1 for a Linear."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def channels_per_group(layer: DenseLayer) -> tuple[int, int]:
    """Return the output and input channels within one group."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels // layer.groups, layer.in_channels // layer.groups


def grouped_kernel(layer: DenseLayer) -> Tensor:
    """Return the weight as `(groups, out, in, *area)`, a view in its own dtype."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight[None]
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, *area)
        return torch.unflatten(weight, 0, (layer.groups, -1)).transpose(1, 2)
    return torch.unflatten(weight, 0, (layer.groups, -1))


@torch.no_grad()
def write_kernel(layer: nn.Module, values: Tensor) -> None:
    """Write a kernel, `(groups, out, in, *area)` or any shape of the same size, into the weight of `layer`."""
    target = grouped_kernel(cast(DenseLayer, layer))
    target.copy_(values.reshape(target.shape))


@torch.no_grad()
def copy_bias(layer: nn.Module, dense: DenseLayer) -> None:
    """Copy the bias of the dense layer, if it has one, into `layer`, its last factor."""
    if dense.bias is not None:
        cast(Tensor, layer.bias).copy_(dense.bias)


def pointwise_layer(
    layer: DenseLayer, in_channels: int, out_channels: int, *, bias: bool = False, with_geometry: bool = False
) -> nn.Module:
    """Return a channel-mixing layer for one factor of `layer`, with its number of dimensions and groups.

    Args:
        in_channels, out_channels: Channels within a group.
        with_geometry: Whether the factor has the stride and padding of `layer`, which is pointwise itself.
    """
    if isinstance(layer, nn.Linear):
        return nn.Linear(in_channels, out_channels, bias=bias)
    g = layer.groups
    if with_geometry:
        geometry = _geometry_along(layer, range(len(layer.kernel_size)))
        return type(layer)(g * in_channels, g * out_channels, layer.kernel_size, groups=g, bias=bias, **geometry)  # type: ignore[arg-type]
    return CONVOLUTION_BY_AXES[CONVOLUTIONS[type(layer)]](g * in_channels, g * out_channels, 1, groups=g, bias=bias)


def spatial_layer(
    layer: Convolution,
    in_channels: int,
    out_channels: int,
    *,
    slices: int = 1,
    axes: tuple[int, ...] | None = None,
    bias: bool = False,
) -> nn.Module:
    """Return a convolution for one factor of `layer`, with the geometry of `layer` along some axes.

    Args:
        in_channels, out_channels: Channels within one group of the dense layer.
        slices: Groups of this factor within one group of the dense layer; `in_channels` for a depthwise factor.
        axes: Spatial axes along which the factor has the kernel size and geometry of `layer`; None for all axes.
    """
    g = layer.groups
    reach = tuple(range(len(layer.kernel_size))) if axes is None else axes
    size = tuple(k if a in reach else 1 for a, k in enumerate(layer.kernel_size))
    geometry = _geometry_along(layer, reach)
    return type(layer)(g * in_channels, g * out_channels, size, groups=g * slices, bias=bias, **geometry)  # type: ignore[arg-type]


def _geometry_along(layer: Convolution, axes: range | tuple[int, ...]) -> dict[str, Any]:
    """Return the stride, padding and so on of `layer` along `axes`, and neutral values along the others."""

    def keep_along_axes(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(v if a in axes else neutral for a, v in enumerate(values))

    made: dict[str, Any] = {
        "stride": keep_along_axes(layer.stride, 1),
        "padding": layer.padding if isinstance(layer.padding, str) else keep_along_axes(layer.padding, 0),
        "dilation": keep_along_axes(layer.dilation, 1),
        "padding_mode": layer.padding_mode,
    }
    if isinstance(layer, TRANSPOSED):
        made["output_padding"] = keep_along_axes(layer.output_padding, 0)
    return made
