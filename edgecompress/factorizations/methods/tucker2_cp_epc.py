"""Tucker-2 with its core in CP form by error-preserving correction: pointwise → pointwise → depthwise → pointwise → pointwise.

Two neighbouring pointwise layers are merged where that takes fewer weights, S·R < r_in (S + R). With both sides merged, the layers are
those of cp_epc, fitted to the part of the kernel that Tucker-2 keeps.

References:
    A.-H. Phan et al. Stable low-rank tensor decomposition for compression of convolutional neural network. ECCV 2020.
"""

from collections import OrderedDict
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks import chain, cp_chain
from edgecompress.factorizations.blocks.layers import (
    Convolution,
    channels_per_group,
    copy_bias,
    grouped_kernel,
    kernel_size,
    pointwise_layer,
    spatial_layer,
    write_kernel,
)
from edgecompress.factorizations.protocol import Moments, NonNegativeFloat, PositiveFloat, PositiveInt
from edgecompress.factorizations.tensors import tucker
from edgecompress.factorizations.tensors.cp import exact_factors, exact_rank, kernel_tensor
from edgecompress.factorizations.tensors.epc import decompose_stably
from edgecompress.factorizations.tensors.sensitivity import balance_factors
from edgecompress.network.factors import Factors
from edgecompress.records import Record


class Options(Record, frozen=True, kw_only=True):
    """Options of the core's decomposition, as for cp_epc."""

    seed: int = 0
    starts: PositiveInt = 3
    sweeps: PositiveInt = 200
    slack: NonNegativeFloat = 0.01
    stability: PositiveFloat = 1.5


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    return cp_chain.reject(layer)


def max_rank(layer: Convolution, options: Options) -> tuple[int, int, int]:
    """Return `(r_out, r_in, rank of the core)`; with smaller r_out and r_in, some components of a core of this rank are zero."""
    out, inside = channels_per_group(layer)
    size = torch.Size(kernel_size(layer)).numel()
    return min(out, inside * size), min(inside, out * size), exact_rank((size, inside, out))


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    r_out, r_in, r = rank
    out, inside = channels_per_group(layer)
    bias = layer.bias is not None
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if not _should_merge(inside, r_in, r):
        layers["squeeze"] = pointwise_layer(layer, inside, r_in)
    layers["before"] = pointwise_layer(layer, r_in if "squeeze" in layers else inside, r)
    layers["core"] = spatial_layer(layer, r, r, slices=r)
    expand = not _should_merge(out, r_out, r)
    layers["after"] = pointwise_layer(layer, r, r_out if expand else out, bias=bias and not expand)
    if expand:
        layers["expand"] = pointwise_layer(layer, r_out, out, bias=bias)
    made = Factors(layers)
    made.rank = rank
    return made


def _should_merge(n: int, r_tucker: int, r: int) -> bool:
    return r_tucker == n or n * r < r_tucker * (n + r)


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> str | None:
    parts = dict(compact.named_children())
    fitted = [_fit_group(k.double().flatten(2), compact.rank, options) for k in grouped_kernel(layer)]
    inside = torch.stack([one.inside if "squeeze" in parts else one.u_in @ one.inside for one in fitted])
    out = torch.stack([one.out if "expand" in parts else one.u_out @ one.out for one in fitted])
    write_kernel(parts["before"], inside.mT)
    write_kernel(parts["core"], torch.stack([one.short.T for one in fitted]))
    write_kernel(parts["after"], out)
    if "squeeze" in parts:
        write_kernel(parts["squeeze"], torch.stack([one.u_in.T for one in fitted]))
    if "expand" in parts:
        write_kernel(parts["expand"], torch.stack([one.u_out for one in fitted]))
    copy_bias(compact[-1], layer)
    return next((one.note for one in fitted if one.note), None)


class _GroupFactors(NamedTuple):
    u_out: Tensor
    u_in: Tensor
    short: Tensor
    inside: Tensor
    out: Tensor
    note: str | None


def _fit_group(k: Tensor, rank: tuple[int, ...], options: Options) -> _GroupFactors:
    """Factor `(out, in, area)`: orthonormal `(out, r_out)` and `(in, r_in)`, and the CP factors of the core between them."""
    r_out, r_in, r = rank
    u_out, u_in = tucker.hooi(k, r_out, r_in)
    core = kernel_tensor(tucker.core_tensor(k, u_out, u_in))
    note = None
    if not core.square:  # one group of several may be dead
        short, inside, out = (torch.zeros(n, r, dtype=torch.float64, device=k.device) for n in core.shape)
    elif r >= exact_rank(core.shape):
        short, inside, out = balance_factors(exact_factors(core, r))
    else:
        run = decompose_stably(core, r, **msgspec.structs.asdict(options))
        short, inside, out = run.factors
        note = cp_chain.describe_unsettled(run, core, "CP-EPC of the core")
    return _GroupFactors(u_out, u_in, short, inside, out, note)
