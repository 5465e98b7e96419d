"""Tucker-2 of a Conv2d kernel by Gram-matrix HOOI: 1×1 → k×k core → 1×1.

K[t, s, i, j] = Σ_a Σ_b G[a, b, i, j] U_out[t, a] U_in[s, b] with orthonormal U. Only T×T and S×S eigenproblems are solved, never an SVD
of an unfolded kernel. A factor at full rank would be a square rotation: it is left out and stays inside the core.

References:
    Y.-D. Kim et al. Compression of deep convolutional neural networks for fast and low power mobile applications. ICLR 2016.
    L. De Lathauwer, B. De Moor, J. Vandewalle. On the best rank-1 and rank-(R1, …, RN) approximation. SIAM J. Matrix Anal. 21(4), 2000.
"""

from collections import OrderedDict
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.protocol import Factors, computed_weight

MAX_SWEEPS: Final = 20
TOLERANCE: Final = 1e-5  # of ‖K‖²; more sweeps change the error in the fifth digit


def reject(layer: nn.Module) -> str | None:
    if type(layer) is not nn.Conv2d:
        return f"{type(layer).__name__}, Tucker-2 takes Conv2d"
    if layer.kernel_size == (1, 1):
        return "kernel 1×1, Tucker-2 would be an SVD with one factor too many"
    if layer.groups != 1:
        return f"groups={layer.groups}, Tucker-2 needs groups=1"
    return computed_weight(layer)


def max_rank(layer: nn.Conv2d) -> tuple[int, int]:
    area = layer.kernel_size[0] * layer.kernel_size[1]
    return min(layer.out_channels, layer.in_channels * area), min(layer.in_channels, layer.out_channels * area)


def skeleton(layer: nn.Conv2d, rank: tuple[int, ...]) -> Factors:
    """Stride, padding, dilation and padding mode sit on the core; the bias on the last layer."""
    r_out, r_in = rank
    squeeze, expand = r_in < layer.in_channels, r_out < layer.out_channels
    bias = layer.bias is not None
    geometry: dict[str, Any] = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if squeeze:
        layers["squeeze"] = nn.Conv2d(layer.in_channels, r_in, 1, bias=False)
    layers["core"] = nn.Conv2d(r_in, r_out, bias=bias and not expand, **geometry)
    if expand:
        layers["expand"] = nn.Conv2d(r_out, layer.out_channels, 1, bias=bias)
    return Factors(layers)


@torch.no_grad()
def fit(layer: nn.Conv2d, compact: Factors) -> None:
    """Alternate the two projections until the core's norm stops growing; ‖K − K̂‖² = ‖K‖² − ‖G‖²."""
    parts = _parts(compact)
    core = parts["core"]
    k = layer.weight.double()  # (out, in, kh, kw)
    u_out, u_in = hooi(k, core.out_channels, core.in_channels)
    core.weight.copy_(torch.einsum("oihw,or,is->rshw", k, u_out, u_in))  # (r_out, r_in, kh, kw)
    if "squeeze" in parts:
        parts["squeeze"].weight.copy_(u_in.T[:, :, None, None])  # (r_in, in, 1, 1)
    if "expand" in parts:
        parts["expand"].weight.copy_(u_out[:, :, None, None])  # (out, r_out, 1, 1)
    last = list(parts.values())[-1]
    if layer.bias is not None and last.bias is not None:
        last.bias.copy_(layer.bias)


def hooi(k: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal `(out, r_out)` and `(in, r_in)` that keep most of the norm of `k`, shape `(out, in, kh, kw)`, float64.

    Which projection is fixed first decides which local optimum is reached, so both orders are run and the better end is taken.
    """
    if r_out == k.shape[0] or r_in == k.shape[1]:  # one projection is the identity: the other one is optimal at once
        return _top(_gram(k), r_out), _top(_gram(k.transpose(0, 1)), r_in)
    u_out, u_in, kept = _alternate(k, r_out, r_in)
    other_in, other_out, other = _alternate(k.transpose(0, 1), r_in, r_out)
    return (other_out, other_in) if other > kept else (u_out, u_in)


def _alternate(k: Tensor, r: int, s: int) -> tuple[Tensor, Tensor, float]:
    """Return projections of axis 0 to `r` and of axis 1 to `s`, and ‖G‖²; starts from the former."""
    u = _top(_gram(k), r)  # (n, r)
    kept, total = 0.0, float(k.square().sum())
    for _ in range(MAX_SWEEPS):
        v = _top(_gram(torch.einsum("tshw,ta->sahw", k, u)), s)  # (m, s)
        gram = _gram(torch.einsum("tshw,sb->tbhw", k, v))
        u = _top(gram, r)
        before, kept = kept, float(torch.einsum("ta,tu,ua->", u, gram, u))
        if kept - before <= TOLERANCE * total:
            break
    return u, v, kept


def _gram(k: Tensor) -> Tensor:
    return torch.einsum("tshw,ushw->tu", k, k)


def reconstruct(compact: Factors) -> Tensor:
    parts = _parts(compact)
    k = parts["core"].weight.double()
    if "squeeze" in parts:
        k = torch.einsum("tbhw,bs->tshw", k, parts["squeeze"].weight.double()[:, :, 0, 0])
    if "expand" in parts:
        k = torch.einsum("ashw,ta->tshw", k, parts["expand"].weight.double()[:, :, 0, 0])
    return k


def _parts(compact: Factors) -> dict[str, nn.Conv2d]:
    return cast("dict[str, nn.Conv2d]", dict(compact.named_children()))


def _top(gram: Tensor, r: int) -> Tensor:
    """The `r` leading eigenvectors, shape `(n, r)`; the identity at full rank, where any rotation is as good."""
    if r == len(gram):
        return torch.eye(r, dtype=gram.dtype)
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -r:].flip(1)
