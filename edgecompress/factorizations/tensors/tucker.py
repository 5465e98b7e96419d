"""Tucker-2 by higher-order orthogonal iteration on Gram matrices.

K[t, s, k] = Σ_a Σ_b G[a, b, k] U_out[t, a] U_in[s, b] with orthonormal U. T×T and S×S eigenproblems take the place of SVDs of unfolded
kernels.

References:
    L. De Lathauwer, B. De Moor, J. Vandewalle. On the best rank-1 and rank-(R1, …, RN) approximation. SIAM J. Matrix Anal. 21(4), 2000.
"""

import math
from typing import Final

import torch
from torch import Tensor

MIN_SWEEPS: Final = 3  # the minimum of tensorly too
MAX_SWEEPS: Final = 20
TOLERANCE: Final = 0.9e-4  # a smaller fall of the relative error in a sweep ends the iteration; tensorly's is 1e-4
BLOCK_ROWS: Final = 128  # a symmetric product is computed in blocks of so many rows, below the diagonal only


def hooi(k: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal `(out, r_out)` and `(in, r_in)`, float64, that keep most of the norm of `k`, shape `(out, in, area)`.

    The sweeps have the same start and order as in other implementations, so their result is no worse. They run in float32 for a float32
    kernel: the squared error depends only on the square of an error of a direction.
    """
    x = _to_slices(k)
    area, n_out, n_in = x.shape
    if r_in == n_in or r_in >= area * r_out:  # this projection loses nothing, so the other one is optimal without iteration
        u, _ = _leading_vectors(x, r_out)
        v, _ = _leading_vectors((u.T @ x).mT, r_in)
        return _orthonormalize(u), _orthonormalize(v)
    v, _ = _leading_vectors(x.mT, r_in)
    if r_out == n_out or r_out >= area * r_in:
        return _orthonormalize(_leading_vectors(x @ v, r_out)[0]), _orthonormalize(v)
    error, total = math.inf, float(x.square().sum()) or 1.0  # one of several groups may be all zero
    for sweep in range(MAX_SWEEPS):
        u, _ = _leading_vectors(x @ v, r_out)
        v, kept = _leading_vectors((u.T @ x).mT, r_in)
        before, error = error, math.sqrt(max(0.0, 1 - kept / total))
        if sweep + 1 >= MIN_SWEEPS and before - error <= TOLERANCE:
            break
    return _orthonormalize(u), _orthonormalize(v)


def core_tensor(k: Tensor, u_out: Tensor, u_in: Tensor) -> Tensor:
    """Return G = K ×₁ U_outᵀ ×₂ U_inᵀ, shape `(r_out, r_in, area)`, in the precision of `k`; ‖K − K̂‖² = ‖K‖² − ‖G‖²."""
    x = _to_slices(k)
    return (u_out.T.to(x) @ (x @ u_in.to(x))).movedim(0, 2)


def _to_slices(k: Tensor) -> Tensor:
    """Return the kernel as slices `(area, out, in)`, in float32 or the kernel's higher precision."""
    return k.to(torch.promote_types(k.dtype, torch.float32)).movedim(2, 0).contiguous()


def _leading_vectors(x: Tensor, r: int) -> tuple[Tensor, float]:
    """Return the `r` leading left singular vectors of `(area, n, m)` unfolded to (n, area · m), and the squared norm that they keep.

    At full rank every rotation is as good, and the identity is returned.
    """
    n = x.shape[1]
    if r == n:
        return torch.eye(n, dtype=x.dtype, device=x.device), float(x.square().sum())
    rows = x.transpose(0, 1).flatten(1)
    gram = rows.new_empty(n, n)
    for i in range(0, n, BLOCK_ROWS):  # only the lower triangle, since eigh reads no more
        torch.mm(rows[i:], rows[i : i + BLOCK_ROWS].T, out=gram[i:, i : i + BLOCK_ROWS])
    values, vectors = torch.linalg.eigh(gram)
    return vectors[:, -r:].flip(1), float(values[-r:].sum())


def _orthonormalize(u: Tensor) -> Tensor:
    """Return a float64 basis of the columns, orthonormal to that precision; a square `u` is returned as it is."""
    q: Tensor = u.double() if u.shape[0] == u.shape[1] else torch.linalg.qr(u.double())[0]
    return q
