"""Moments of a layer's input, with which a factorization can minimise the error of the layer's output."""

from collections.abc import Iterable, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompress.factorizations.blocks.chain import compose_kernels
from edgecompress.factorizations.blocks.layers import TRANSPOSED, Convolution, DenseLayer, copy_bias, group_count, grouped_kernel
from edgecompress.factorizations.protocol import Moments
from edgecompress.network.batches import Batch, call_network
from edgecompress.network.factors import Factors

MAX_ROWS_BYTES: Final = 64_000_000  # memory for im2col rows; longer batches are split


@torch.no_grad()
def collect_moments(model: nn.Module, layers: Sequence[str], inputs: Iterable[Batch]) -> dict[str, Moments]:
    """Run `model` in its present mode on `inputs` and return the moments of each layer's input.

    Args:
        layers: Names of Linears and convolutions that `supports_moments` accepts; a layer that never runs is left out of the result.
    """
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def watch(name: str) -> object:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            x = args[0] if args else kwargs["input"]
            for part in _split_batch(cast(DenseLayer, layer), x):
                rows = im2col(cast(DenseLayer, layer), part)  # (groups, positions, n)
                second, first = (rows.mT @ rows).double(), rows.double().sum(1)
                before = sums.get(name)
                count = rows.shape[1]
                sums[name] = (before[0] + second, before[1] + first, before[2] + count) if before else (second, first, count)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in layers]  # type: ignore[arg-type]
    try:
        for x in inputs:
            call_network(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: Moments(second / count, first / count) for name, (second, first, count) in sums.items()}


def supports_moments(layer: DenseLayer) -> bool:
    """Return whether each output of `layer` reads one im2col row; in a transposed convolution it depends on the output's phase."""
    return not isinstance(layer, TRANSPOSED)


def im2col(layer: DenseLayer, x: Tensor) -> Tensor:
    """Return the rows that `layer` multiplies by its flattened kernel, shape `(groups, positions, in / groups · area)`."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    axes = len(layer.kernel_size)
    x = F.pad(x, _padding_of(layer), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    for axis, (k, d, s) in enumerate(zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    rows: Tensor = torch.unflatten(x, 1, (layer.groups, -1))  # (batch, groups, in, *positions, *area)
    order = (1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
    return rows.permute(order).flatten(1, 1 + axes).flatten(2)


def _padding_of(layer: Convolution) -> Sequence[int]:
    """Return the padding that `layer` applies, last axis first; `padding` may be a word, and torch then keeps the numbers elsewhere."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return layer._reversed_padding_repeated_twice
    return [p for p in reversed(layer.padding) for _ in range(2)]


def _split_batch(layer: DenseLayer, x: Tensor) -> Sequence[Tensor]:
    """Split a layer's input along the batch, so that the im2col rows of each part fit into MAX_ROWS_BYTES."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums in half precision overflow
    if isinstance(layer, nn.Linear):
        return (x,)
    x = x if x.dim() == len(layer.kernel_size) + 2 else x[None]
    sample = 4 * x[0].numel() * torch.Size(layer.kernel_size).numel()
    return torch.split(x, max(1, MAX_ROWS_BYTES // max(1, sample)))


def error_moments(layer: DenseLayer, moments: Moments | None, group: int) -> Tensor | None:
    """Return the moments that weight the error of one group's output: centred if a bias can absorb the mean, else as collected."""
    if moments is None:
        return None
    second, mean = moments.second[group], moments.mean[group]
    return second if layer.bias is None else second - torch.outer(mean, mean)


@torch.no_grad()
def correct_bias(layer: DenseLayer, compact: Factors, moments: Moments | None) -> None:
    """Set the last factor's bias to the dense layer's, plus the mean error of the output: b' = b + (W − Ŵ) E[x]."""
    last = compact[-1]
    copy_bias(last, layer)
    if moments is not None and layer.bias is not None:
        lost = grouped_kernel(layer).double() - compose_kernels(compact)
        cast(Tensor, last.bias).add_((lost.flatten(2) @ moments.mean[..., None]).flatten())


def are_moments_of(layer: DenseLayer, moments: Moments) -> bool:
    """Return whether `moments` have the shape of this layer's input moments."""
    n = grouped_kernel(layer)[0, 0].numel()
    return tuple(moments.second.shape) == (group_count(layer), n, n) and tuple(moments.mean.shape) == (group_count(layer), n)
