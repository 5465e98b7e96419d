"""Modules and ATen operators that are layers with a weight: linear layers and convolutions."""

from typing import Final, cast

import torch
from torch import fx, nn

aten = torch.ops.aten

TRANSPOSED_MODULES: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED_MODULES: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED_MODULES)

LINEAR_OPS: Final = {aten.linear.default}
CONVOLUTION_OPS: Final = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED_OPS: Final = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
WEIGHTED_OPS: Final = LINEAR_OPS | CONVOLUTION_OPS | TRANSPOSED_OPS

GROUPS_ARGUMENT: Final = 6  # position of `groups` among the arguments of a convolution, transposed or not


def groups_of(layer: fx.Node) -> int:
    """Return the number of groups of a convolution's node; 1 for a linear layer."""
    return cast("int", layer.args[GROUPS_ARGUMENT]) if layer.target not in LINEAR_OPS and len(layer.args) > GROUPS_ARGUMENT else 1


def is_depthwise(layer: fx.Node) -> bool:
    """Whether a node is an ordinary convolution in which each output channel reads one input channel."""
    return layer.target in CONVOLUTION_OPS and groups_of(layer) > 1 and cast("fx.Node", layer.args[1]).meta["val"].shape[1] == 1


def weight_name(layer: fx.Node) -> str | None:
    """Return the name of the constant weight that a layer's node reads; None where the node is no layer, or its weight is computed."""
    if layer.target not in WEIGHTED_OPS or not isinstance(layer.args[1], fx.Node) or layer.args[1].op != "get_attr":
        return None
    return str(layer.args[1].target)
