"""Tucker-2 by higher-order orthogonal iteration on Gram matrices.

K[t, s, k] = Σ_a Σ_b G[a, b, k] U_out[t, a] U_in[s, b] with orthonormal U. Only T×T and S×S eigenproblems are solved, never an SVD of an
unfolded kernel.

References:
    L. De Lathauwer, B. De Moor, J. Vandewalle. On the best rank-1 and rank-(R1, …, RN) approximation. SIAM J. Matrix Anal. 21(4), 2000.
"""

from typing import Final

import torch
from torch import Tensor

from edgecompress.tensors.lowrank import leading

MAX_SWEEPS: Final = 20
TOLERANCE: Final = 1e-5  # of ‖K‖²; more sweeps change the error in the fifth digit


def hooi(k: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal `(out, r_out)` and `(in, r_in)` that keep most of the norm of `k`, shape `(out, in, area)`, float64.

    Which projection is fixed first decides which local optimum is reached, so both orders are run and the better end is taken.
    """
    if r_out == k.shape[0] or r_in == k.shape[1]:  # one projection is the identity: the other one is optimal at once
        return _top(_gram(k), r_out), _top(_gram(k.transpose(0, 1)), r_in)
    u_out, u_in, kept = _alternate(k, r_out, r_in)
    other_in, other_out, other = _alternate(k.transpose(0, 1), r_in, r_out)
    return (other_out, other_in) if other > kept else (u_out, u_in)


def core(k: Tensor, u_out: Tensor, u_in: Tensor) -> Tensor:
    """Return G = K ×₁ U_outᵀ ×₂ U_inᵀ, shape `(r_out, r_in, area)`; ‖K − K̂‖² = ‖K‖² − ‖G‖²."""
    return torch.einsum("tsk,ta,sb->abk", k, u_out, u_in)


def _alternate(k: Tensor, r: int, s: int) -> tuple[Tensor, Tensor, float]:
    """Return projections of axis 0 to `r` and of axis 1 to `s`, and ‖G‖²; starts from the former."""
    u = _top(_gram(k), r)  # (n, r)
    kept, total = 0.0, float(k.square().sum())
    for _ in range(MAX_SWEEPS):
        v = _top(_gram(torch.einsum("tsk,ta->sak", k, u)), s)  # (m, s)
        gram = _gram(torch.einsum("tsk,sb->tbk", k, v))
        u = _top(gram, r)
        before, kept = kept, float(torch.einsum("ta,tu,ua->", u, gram, u))
        if kept - before <= TOLERANCE * total:
            break
    return u, v, kept


def _gram(k: Tensor) -> Tensor:
    return torch.einsum("tsk,usk->tu", k, k)


def _top(symmetric: Tensor, r: int) -> Tensor:
    """Return the leading eigenvectors; the identity at full rank, where any rotation is as good."""
    return torch.eye(r, dtype=symmetric.dtype, device=symmetric.device) if r == len(symmetric) else leading(symmetric, r)
