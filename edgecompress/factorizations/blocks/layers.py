"""Dense layers as kernels, and kernels as layers: the one place that knows strides, paddings, groups and transposed weights.

A *kernel* has shape `(groups, out, in, *area)`, `out` and `in` counted within a group; a Linear has an empty area. All low-rank forms of
convolutions are chains of *pointwise* layers, which mix channels, and *spatial* ones, which hold the geometry of the dense layer.
"""

import math
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer = nn.Linear | Convolution

CONVOLUTIONS: Final[dict[type[nn.Module], int]] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN: Final = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def unfit(layer: nn.Module) -> str | None:
    """Why no method can factorize `layer`; None if it is an ordinary Linear or convolution with more than one weight a group."""
    known = type(layer) is nn.Linear or type(layer) in CONVOLUTIONS
    if parametrize.is_parametrized(layer) or (known and not isinstance(layer.weight, nn.Parameter)):
        return "its weight is computed from other parameters (weight norm, pruning), make it an ordinary one first"
    if not known:
        return f"{type(layer).__name__} is neither a Linear nor a convolution of torch.nn itself"
    if cast(Layer, layer).weight.numel() == groups_of(cast(Layer, layer)):
        return "it has one weight a group, there is nothing to factorize"
    return None


def area(layer: Layer) -> tuple[int, ...]:
    """Kernel size; empty for Linear."""
    return () if isinstance(layer, nn.Linear) else tuple(layer.kernel_size)


def is_pointwise(layer: Layer) -> bool:
    """Whether `layer` is a Linear or a convolution with a kernel of size 1."""
    return math.prod(area(layer)) == 1


def only_mixes(layer: Layer) -> bool:
    """Whether `layer` maps each position to the same position: it is pointwise and has neither stride nor padding."""
    if isinstance(layer, nn.Linear):
        return True
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return is_pointwise(layer) and set(layer.stride) == {1} and not padded and not any(layer.output_padding)


def groups_of(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def channels(layer: Layer) -> tuple[int, int]:
    """Output and input channels within one group."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels // layer.groups, layer.in_channels // layer.groups


def kernel(layer: Layer) -> Tensor:
    """Return the weight as `(groups, out, in, *area)`, a view in its own dtype."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight[None]
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, *area)
        return torch.unflatten(weight, 0, (layer.groups, -1)).transpose(1, 2)
    return torch.unflatten(weight, 0, (layer.groups, -1))


@torch.no_grad()
def fill(layer: nn.Module, values: Tensor) -> None:
    """Write a kernel, `(groups, out, in, *area)` or of the same size, into `layer`."""
    target = kernel(cast(Layer, layer))
    target.copy_(values.reshape(target.shape))


@torch.no_grad()
def fill_bias(layer: nn.Module, dense: Layer) -> None:
    """Copy the bias of the dense layer into the last factor."""
    if dense.bias is not None:
        cast(Tensor, layer.bias).copy_(dense.bias)


def pointwise(layer: Layer, inside: int, out: int, *, bias: bool = False, place: bool = False) -> nn.Module:
    """Return a channel-mixing layer for one factor of `layer`, of its dimension and with its groups.

    Args:
        inside, out: Channels within a group.
        place: Whether this factor of a pointwise layer carries its stride and padding.
    """
    if isinstance(layer, nn.Linear):
        return nn.Linear(inside, out, bias=bias)
    g = layer.groups
    if place:
        return type(layer)(g * inside, g * out, layer.kernel_size, groups=g, bias=bias, **_geometry(layer, range(len(layer.kernel_size))))  # type: ignore[arg-type]
    return PLAIN[CONVOLUTIONS[type(layer)]](g * inside, g * out, 1, groups=g, bias=bias)


def spatial(
    layer: Convolution, inside: int, out: int, *, slices: int = 1, axes: tuple[int, ...] | None = None, bias: bool = False
) -> nn.Module:
    """Return a convolution with the geometry of `layer` for one factor of it.

    Args:
        inside, out: Channels within one group of the dense layer.
        slices: Groups of this factor within one group of the dense layer; `inside` for a depthwise factor.
        axes: The spatial axes on which it reaches beyond one position; the others are left to other factors. None for all.
    """
    g = layer.groups
    reach = tuple(range(len(layer.kernel_size))) if axes is None else axes
    size = tuple(k if a in reach else 1 for a, k in enumerate(layer.kernel_size))
    return type(layer)(g * inside, g * out, size, groups=g * slices, bias=bias, **_geometry(layer, reach))  # type: ignore[arg-type]


def _geometry(layer: Convolution, axes: range | tuple[int, ...]) -> dict[str, Any]:
    """Stride, padding and so on along `axes`; neutral along the others."""

    def along(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(v if a in axes else neutral for a, v in enumerate(values))

    made: dict[str, Any] = {
        "stride": along(layer.stride, 1),
        "padding": layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        "dilation": along(layer.dilation, 1),
        "padding_mode": layer.padding_mode,
    }
    if isinstance(layer, TRANSPOSED):
        made["output_padding"] = along(layer.output_padding, 0)
    return made
