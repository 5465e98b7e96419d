"""SVD of a kernel unfolded to (in·k, out·rest): a k×1 convolution, then a convolution along the other axes.

References:
    M. Jaderberg, A. Vedaldi, A. Zisserman. Speeding up convolutional neural networks with low rank expansions. BMVC 2014.
"""

from typing import Final, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks import chain
from edgecompress.factorizations.blocks.layers import (
    Convolution,
    DenseLayer,
    channels_per_group,
    grouped_kernel,
    kernel_size,
    spatial_layer,
    unsupported_reason,
    write_kernel,
)
from edgecompress.factorizations.moments import correct_bias, error_moments
from edgecompress.factorizations.protocol import Moments, NoOptions
from edgecompress.factorizations.tensors.lowrank import balance_norms, truncated_svd
from edgecompress.network.factors import Factors

Options = NoOptions
DATA_AWARE = True
reconstruct = chain.reconstruct

RIDGE: Final = 1e-10  # times the largest moment: features that calibration never excites keep their weights


def reject(layer: nn.Module) -> str | None:
    if reason := unsupported_reason(layer):
        return reason
    size = kernel_size(cast(DenseLayer, layer))
    if sum(k > 1 for k in size) < 2:
        return f"kernel {'×'.join(map(str, size)) or 'of a Linear'}, spatial_svd needs two axes to split; use svd or channel_svd"
    return None


def max_rank(layer: Convolution, options: NoOptions) -> tuple[int]:
    out, inside = channels_per_group(layer)
    axis, size = _long_axis(layer), kernel_size(layer)
    return (min(inside * size[axis], out * torch.Size(size).numel() // size[axis]),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: NoOptions) -> Factors:
    """Return two convolutions, each with the stride, padding and dilation along its own axes; the last has the bias."""
    (r,) = rank
    out, inside = channels_per_group(layer)
    axis = _long_axis(layer)
    rest = tuple(a for a in range(len(kernel_size(layer))) if a != axis)
    return Factors(spatial_layer(layer, inside, r, axes=(axis,)), spatial_layer(layer, r, out, axes=rest, bias=layer.bias is not None))


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: NoOptions, moments: Moments | None) -> None:
    first, last = compact
    r = channels_per_group(cast(DenseLayer, first))[0]
    axis = _long_axis(layer)
    pairs = [_fit_group(k, axis, r, error_moments(layer, moments, i)) for i, k in enumerate(grouped_kernel(layer))]
    write_kernel(first, torch.stack([along for along, _ in pairs]))
    write_kernel(last, torch.stack([across for _, across in pairs]))
    correct_bias(layer, compact, moments)


def _long_axis(layer: Convolution) -> int:
    """Return the first axis on which the kernel is longer than 1."""
    return next(a for a, k in enumerate(kernel_size(layer)) if k > 1)


def _fit_group(k: Tensor, axis: int, r: int, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factor `(out, in, *area)` into `(r, in · k)` and `(out, r · rest)`; `second` is E[x xᵀ] of the flattened `(in, *area)`."""
    shape = k.shape[1:]
    k = k.movedim(2 + axis, 2).flatten(3)  # (out, in, k, rest)
    out, inside, size, rest = k.shape
    matrix = k.transpose(2, 3).transpose(1, 2).reshape(out * rest, inside * size)
    if second is None:
        left, along = truncated_svd(matrix, r)
        return along, left.reshape(out, rest, r).transpose(1, 2).flatten(1)
    c = second.reshape(*shape, *shape).movedim((1 + axis, 1 + len(shape) + axis), (1, 1 + len(shape)))
    c = c.reshape(inside * size, rest, inside * size, rest)
    alike = torch.einsum("aibi->ab", c) / rest  # as if the inputs at different positions of the other axes were independent
    w = k.double().reshape(out, inside * size, rest)
    found = [_refit_second(w, *truncated_svd(matrix, r, weight), c) for weight in (None, alike)]
    along, across, _ = min(found, key=lambda one: one[2])
    return along, across


def _refit_second(w: Tensor, left: Tensor, along: Tensor, c: Tensor) -> tuple[Tensor, Tensor, float]:
    """Solve for the second factor with the least error of the output, given the first; return both, balanced, and that error."""
    out, _, rest = w.shape
    r = len(along)
    across = left.reshape(out, rest, r).transpose(1, 2)  # (out, r, rest)
    lost = w - torch.einsum("ors,ra->oas", across, along)
    seen = torch.einsum("aibj,rb->airj", c, along)  # E[x zᵀ], with z the input of the second factor
    reads = torch.einsum("airj,qa->qirj", seen, along).reshape(r * rest, r * rest)
    ridge = RIDGE * float(reads.diagonal().max().clamp_min(torch.finfo(reads.dtype).tiny))
    wanted = torch.einsum("oai,airj->orj", lost, seen).reshape(out, r * rest)
    reads.diagonal().add_(ridge)
    across = across.reshape(out, r * rest) + torch.linalg.solve(reads, wanted.T).T
    lost = w - torch.einsum("ors,ra->oas", across.reshape(out, r, rest), along)
    error = float(torch.einsum("oai,aibj,obj->", lost, c, lost))
    flat = across.reshape(out, r, rest).transpose(1, 2).reshape(out * rest, r)
    flat, along = balance_norms(flat, along)
    return along, flat.reshape(out, rest, r).transpose(1, 2).flatten(1), error
