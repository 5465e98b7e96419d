"""What each quantization scheme does to weights and activations: the rules, and the grids themselves.

The grids are those of TFLite's int8 specification [JACO18], which ONNX, FX and PT2E share but for details: weights symmetric, one scale for
each output channel; activations asymmetric, one scale for a tensor. Where gradients are wanted, rounding passes them as if it did nothing
[BENG13], and so that the very functions that simulate a scheme train a network for it.

References:
    [JACO18] B. Jacob et al. Quantization and training of neural networks for efficient integer-arithmetic-only inference. CVPR 2018.
    [BENG13] Y. Bengio, N. Léonard, A. Courville. Estimating or propagating gradients through stochastic neurons. arXiv:1308.3432, 2013.
"""

from typing import Final, Literal, NamedTuple, cast

import torch
from torch import Tensor, fx

from edgecompress.network.subgraph import SOFTMAX

aten = torch.ops.aten


class Rule(NamedTuple):
    """What a scheme does. 0 bits: nothing."""

    weight_bits: int = 0
    activations: Literal["", "dynamic", "static"] = ""
    activation_bits: int = 8
    half: bool = False


RULES: Final[dict[str, Rule]] = {
    "fp32": Rule(),
    "fp16": Rule(half=True),
    "int8-dynamic": Rule(8, "dynamic"),
    "int8-static": Rule(8, "static"),
    "int16x8": Rule(8, "static", 16),
    "int4-weights": Rule(4),
}
FORWARD: Final = {
    aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED: Final = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
BARRED: Final = -1e4  # scores at or below it, −∞ among them, are meant as "never"
GROUPS: Final = 6  # place of `groups` among the arguments of a convolution, transposed or not
# What formats have dynamic kernels for, where they have them not for every layer.
DYNAMIC: Final = {"torchscript": {aten.linear.default}, "onnx": FORWARD}


def rule_of(layer: fx.Node, scheme: str, format: str) -> Rule:  # noqa: A002 - the field's word
    """Return what a scheme does to a node in files of a format, by the kernels that there are."""
    rule = RULES[scheme]
    if rule.activations == "dynamic" and layer.target not in DYNAMIC.get(format, FORWARD | TRANSPOSED):
        return Rule()
    if rule.weight_bits == 4 and (layer.target in TRANSPOSED or _is_depthwise(layer)):
        return rule._replace(weight_bits=8)  # TFLite's kernels for them read no 4-bit weights
    return rule


def _is_depthwise(layer: fx.Node) -> bool:
    groups = cast("int", layer.args[GROUPS]) if layer.target in FORWARD and len(layer.args) > GROUPS else 1
    return groups > 1 and cast("fx.Node", layer.args[1]).meta["val"].shape[1] == 1


def barred(node: fx.Node, value: Tensor) -> Tensor | None:
    """Return where a mask keeps scores from the softmax that reads them; None where no softmax does. They stay off the grid."""
    return value <= BARRED if any(user.target in SOFTMAX for user in node.users) else None


def symmetric(x: Tensor, peak: Tensor, bits: int) -> Tensor:
    """Return `x` rounded to multiples of `peak` / (2^(bits − 1) − 1), which broadcasts against it."""
    levels = 2 ** (bits - 1) - 1
    scale = (peak / levels).clamp_min(torch.finfo(x.dtype).tiny)
    found: Tensor = _rounded(x / scale).clamp(-levels, levels) * scale
    return found


def asymmetric(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return `x` on the grid of 2^bits steps from `low` to `high`, stretched so that 0 lies on it; int16 is symmetric."""
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    if bits == 16:
        return symmetric(x, torch.maximum(-low, high), bits)
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-low / scale).round().clamp(0, steps)
    found: Tensor = (_rounded(x / scale) + zero).clamp(0, steps).sub(zero) * scale
    return found


def channel_peak(weight: Tensor, layer: fx.Node) -> Tensor:
    """Return the largest weight of each output channel, to be broadcast against `weight`."""
    if layer.target not in TRANSPOSED:
        return weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))
    groups = cast("int", layer.args[GROUPS]) if len(layer.args) > GROUPS else 1
    grouped = weight.abs().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())  # (groups, in / groups, out / groups, taps)
    peak = grouped.amax((1, 3), keepdim=True).expand(-1, grouped.shape[1], -1, 1)
    return peak.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def weight_of(layer: fx.Node) -> str | None:
    """Return the name of the constant weight that a convolution or linear layer reads; None where `layer` is none, or computes it."""
    if layer.target not in FORWARD | TRANSPOSED or not isinstance(layer.args[1], fx.Node) or layer.args[1].op != "get_attr":
        return None
    return str(layer.args[1].target)


def _rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round()  # the same number: the difference is exact
