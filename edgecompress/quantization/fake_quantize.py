"""Fake quantization: weights and activations rounded to the integer grids of a scheme and kept as floating point.

The grids are those of TFLite's int8 specification [JACO18], which ONNX, FX and PT2E share but for details: weights symmetric, one scale for
each output channel; activations asymmetric, one scale for a tensor. Gradients pass through rounding unchanged [BENG13], so that the very
functions that simulate a scheme also train a network for it.

References:
    [JACO18] B. Jacob et al. Quantization and training of neural networks for efficient integer-arithmetic-only inference. CVPR 2018.
    [BENG13] Y. Bengio, N. Léonard, A. Courville. Estimating or propagating gradients through stochastic neurons. arXiv:1308.3432, 2013.
"""

from typing import Final

import msgspec
import torch
from torch import Tensor, fx

from edgecompress.network.layer_kinds import CONVOLUTION_OPS, LINEAR_OPS, TRANSPOSED_OPS, WEIGHTED_OPS, groups_of, is_depthwise
from edgecompress.network.subgraph import SOFTMAX_OPS
from edgecompress.targets import FLOAT32, SCHEMES, Scheme

MASKED_SCORE: Final = -1e4  # attention scores at or below it, −∞ among them, are a mask's and mean "never"
# Formats whose runtimes have dynamic kernels for some layers only.
DYNAMIC_OPS: Final = {"torchscript": LINEAR_OPS, "onnx": LINEAR_OPS | CONVOLUTION_OPS}


def supported_scheme(layer: fx.Node, scheme: str, format: str) -> Scheme:  # noqa: A002 - the field's word
    """Return the scheme that a node asked to be in `scheme` gets in files of a format, whose kernels may not support that one."""
    asked = SCHEMES[scheme]
    if asked.dynamic and layer.target not in DYNAMIC_OPS.get(format, WEIGHTED_OPS):
        return SCHEMES[FLOAT32]
    if asked.weight_bits < 8 and (layer.target in TRANSPOSED_OPS or is_depthwise(layer)):
        return msgspec.structs.replace(asked, weight_bits=8)  # TFLite's kernels for such layers read no smaller weights
    return asked


def gptq_bits(layer: fx.Node, scheme: str, format: str) -> int | None:  # noqa: A002
    """Return the bits of a layer's weight where GPTQ rounds it; None where the weight stays float or has one scale for the tensor."""
    found = supported_scheme(layer, scheme, format)
    return found.weight_bits if found.has_integer_weights and found.per_channel else None


def masked_positions(node: fx.Node, scores: Tensor) -> Tensor | None:
    """Return where a mask keeps a node's values from the softmax that reads them; None where no softmax reads them.

    Masked values are not quantized: their range would leave nothing for the others.
    """
    return scores <= MASKED_SCORE if any(user.target in SOFTMAX_OPS for user in node.users) else None


def largest_integer(bits: int) -> int:
    """Return the largest integer of a symmetric grid: 127 for 8 bits."""
    return int(2 ** (bits - 1) - 1)


def symmetric_scale(peak: Tensor, bits: int) -> Tensor:
    """Return the step of the symmetric grid whose largest value is `peak`, never zero."""
    return (peak / largest_integer(bits)).clamp_min(torch.finfo(peak.dtype).tiny)


def round_to_multiples(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return `x` rounded to multiples of `scale`, which broadcasts against it, within the integers of a symmetric grid."""
    largest = largest_integer(bits)
    found: Tensor = _round(x / scale).clamp(-largest, largest) * scale
    return found


def fake_quantize_symmetric(x: Tensor, peak: Tensor, bits: int) -> Tensor:
    """Return `x` on the symmetric grid whose largest value is `peak`, which broadcasts against it."""
    return round_to_multiples(x, symmetric_scale(peak, bits), bits)


def fake_quantize_asymmetric(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return `x` on the grid of 2^bits steps from `low` to `high`, stretched so that 0 lies on it; 16 bits are symmetric."""
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    if bits == 16:
        return fake_quantize_symmetric(x, torch.maximum(-low, high), bits)
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-low / scale).round().clamp(0, steps)
    found: Tensor = (_round(x / scale) + zero).clamp(0, steps).sub(zero) * scale
    return found


def fake_quantize_weight(weight: Tensor, layer: fx.Node, scheme: Scheme) -> Tensor:
    """Return the weight of a layer's node on the integer grid of a scheme."""
    peak = channel_peaks(weight, layer) if scheme.per_channel else weight.abs().amax()
    return fake_quantize_symmetric(weight, peak, scheme.weight_bits)


def channel_peaks(weight: Tensor, layer: fx.Node) -> Tensor:
    """Return the largest absolute weight of each output channel, shaped to broadcast against `weight`."""
    if layer.target not in TRANSPOSED_OPS:
        return row_peaks(weight)
    groups = groups_of(layer)
    grouped = weight.abs().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())  # (groups, in / groups, out / groups, taps)
    peak = grouped.amax((1, 3), keepdim=True).expand(-1, grouped.shape[1], -1, 1)
    return peak.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def row_peaks(weight: Tensor) -> Tensor:
    """Return the largest absolute value of each row of axis 0, shaped to broadcast against `weight`."""
    return weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))


def _round(x: Tensor) -> Tensor:
    """Round to nearest; the gradient is that of the identity."""
    return x + (x.round() - x).detach() if torch.is_grad_enabled() else x.round()  # the same number: the difference is exact
