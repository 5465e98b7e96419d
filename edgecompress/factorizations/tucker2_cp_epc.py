"""Tucker-2 whose core is CP by error-preserving correction: pointwise → pointwise → depthwise → pointwise → pointwise.

Two pointwise neighbours are merged where that needs fewer weights, S·R < r_in (S + R); with both sides merged the layers are those of
cp_epc, fitted to the part of the kernel that Tucker-2 keeps.

References:
    A.-H. Phan et al. Stable low-rank tensor decomposition for compression of convolutional neural network. ECCV 2020.
"""

from collections import OrderedDict
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks import chain, cp_chain
from edgecompress.factorizations.blocks.layers import Convolution, area, channels, fill, fill_bias, kernel, pointwise, spatial
from edgecompress.factorizations.protocol import Count, Moments, NotNegative, Positive
from edgecompress.factorizations.tensors import tucker
from edgecompress.factorizations.tensors.cp import exact, exact_rank, kernel_of
from edgecompress.factorizations.tensors.epc import stable
from edgecompress.factorizations.tensors.sensitivity import balanced
from edgecompress.network.factors import Factors
from edgecompress.records import Record


class Options(Record, frozen=True, kw_only=True):
    """Of the core, as for cp_epc."""

    seed: int = 0
    starts: Count = 3
    sweeps: Count = 200
    slack: NotNegative = 0.01
    stability: Positive = 1.5


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    return cp_chain.reject(layer)


def max_rank(layer: Convolution, options: Options) -> tuple[int, int, int]:
    """Return `(r_out, r_in, rank of the core)`. A core rank beyond what smaller r_out and r_in allow leaves components at zero."""
    out, inside = channels(layer)
    size = torch.Size(area(layer)).numel()
    return min(out, inside * size), min(inside, out * size), exact_rank((size, inside, out))


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    r_out, r_in, r = rank
    out, inside = channels(layer)
    bias = layer.bias is not None
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if not _merged(inside, r_in, r):
        layers["squeeze"] = pointwise(layer, inside, r_in)
    layers["before"] = pointwise(layer, r_in if "squeeze" in layers else inside, r)
    layers["core"] = spatial(layer, r, r, slices=r)
    expand = not _merged(out, r_out, r)
    layers["after"] = pointwise(layer, r, r_out if expand else out, bias=bias and not expand)
    if expand:
        layers["expand"] = pointwise(layer, r_out, out, bias=bias)
    made = Factors(layers)
    made.rank = rank
    return made


def _merged(n: int, r_tucker: int, r: int) -> bool:
    return r_tucker == n or n * r < r_tucker * (n + r)


@torch.no_grad()
def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> str | None:
    parts = dict(compact.named_children())
    fitted = [_fitted(k.double().flatten(2), compact.rank, options) for k in kernel(layer)]
    inside = torch.stack([one.inside if "squeeze" in parts else one.u_in @ one.inside for one in fitted])
    out = torch.stack([one.out if "expand" in parts else one.u_out @ one.out for one in fitted])
    fill(parts["before"], inside.mT)
    fill(parts["core"], torch.stack([one.short.T for one in fitted]))
    fill(parts["after"], out)
    if "squeeze" in parts:
        fill(parts["squeeze"], torch.stack([one.u_in.T for one in fitted]))
    if "expand" in parts:
        fill(parts["expand"], torch.stack([one.u_out for one in fitted]))
    fill_bias(compact[-1], layer)
    return next((one.note for one in fitted if one.note), None)


class _Fitted(NamedTuple):
    u_out: Tensor
    u_in: Tensor
    short: Tensor
    inside: Tensor
    out: Tensor
    note: str | None


def _fitted(k: Tensor, rank: tuple[int, ...], options: Options) -> _Fitted:
    """Factor `(out, in, area)`: orthonormal `(out, r_out)` and `(in, r_in)`, and the CP factors of the core between them."""
    r_out, r_in, r = rank
    u_out, u_in = tucker.hooi(k, r_out, r_in)
    core = kernel_of(tucker.core(k, u_out, u_in))
    note = None
    if not core.square:  # one group of several may be dead
        short, inside, out = (torch.zeros(n, r, dtype=torch.float64, device=k.device) for n in core.shape)
    elif r >= exact_rank(core.shape):
        short, inside, out = balanced(exact(core, r))
    else:
        run = stable(core, r, **msgspec.structs.asdict(options))
        short, inside, out = run.factors
        note = cp_chain.remark(run, core, "CP-EPC of the core")
    return _Fitted(u_out, u_in, short, inside, out, note)
