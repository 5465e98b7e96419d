"""Best low-rank approximations of matrices by eigenvectors of a Gram matrix, whose cost depends on the matrix's shorter side.

Whatever the condition of the matrix, a projection on eigenvectors is exact to rounding at full rank, and its error equals the norm of the
dropped singular values to the square root of rounding. The small eigenvalues, which a Gram matrix loses, are not used.
"""

from typing import Final

import torch
from torch import Tensor

CHUNK_VALUES: Final = 1 << 20  # a chunk of so many float64 values takes 8 MB beside the matrix
RIDGE: Final = 1e-10  # times the largest moment: small beside the directions that inputs excite, large beside rounding


def gram_matrix(matrix: Tensor) -> Tensor:
    """Return M Mᵀ in float64 for `(m, n)` of any dtype, without a float64 copy of M."""
    m = len(matrix)
    total = matrix.new_zeros(m, m, dtype=torch.float64)
    for part in torch.split(matrix, max(1, CHUNK_VALUES // m), dim=1):
        block = part.double()
        total.addmm_(block, block.T)
    return total


def leading_eigenvectors(symmetric: Tensor, r: int) -> Tensor:
    """Return the `r` leading eigenvectors of `(n, n)`, shape `(n, r)`, largest first."""
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors[:, -r:].flip(1)


def multiply_in_chunks(left: Tensor, matrix: Tensor) -> Tensor:
    """Return `left @ matrix` in float64 without a float64 copy of `matrix`."""
    product = left.new_empty(len(left), matrix.shape[1])
    chunk = max(1, CHUNK_VALUES // len(matrix))
    for into, part in zip(torch.split(product, chunk, dim=1), torch.split(matrix, chunk, dim=1), strict=True):
        torch.matmul(left, part.double(), out=into)
    return product


def truncated_svd(matrix: Tensor, r: int, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `(m, r)` and `(r, n)`, float64, whose product best approximates `(m, n)`; each component's norm is split evenly.

    Without `second` the error is the Frobenius norm (Eckart–Young). With `second`, E[x xᵀ] of shape `(n, n)`, it is E‖(M − M̂)x‖², and the
    solution is the projection of M on the leading eigenvectors of M E[x xᵀ] Mᵀ. The solution needs no inverse, so singular moments do no
    harm, and directions that the inputs never excite are approximated in the Frobenius norm.

    References:
        C. Eckart, G. Young. The approximation of one matrix by another of lower rank. Psychometrika 1(3), 1936.
        X. Zhang et al. Accelerating very deep convolutional networks for classification and detection. TPAMI 38(10), 2016.
    """
    m, n = matrix.shape
    if m > n and second is None:
        right, left = truncated_svd(matrix.T, r)
        return left.T, right.T
    if m > n:  # choose only among directions in the range of M, or full rank would not be exact
        q, reached = torch.linalg.qr(matrix.double())
        left, right = truncated_svd(reached, r, second)
        return q @ left, right
    u = leading_eigenvectors(gram_matrix(matrix) if second is None else _output_gram_matrix(matrix, second), r)
    return balance_norms(u, multiply_in_chunks(u.T, matrix))


def _output_gram_matrix(matrix: Tensor, second: Tensor) -> Tensor:
    """Return M (E[x xᵀ] / its largest diagonal + RIDGE) Mᵀ."""
    scale = float(second.diagonal().amax().clamp_min(torch.finfo(second.dtype).tiny))
    outputs = multiply_in_chunks(multiply_in_chunks(second, matrix.T).T, matrix.T)
    return gram_matrix(matrix).mul_(RIDGE).add_(outputs, alpha=1 / scale)


def balance_norms(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Give each column of `(m, r)` and the matching row of `(r, n)` the same norm; their product stays the same."""
    a, b = left.norm(dim=0), right.norm(dim=1)
    scale = torch.where((a > 0) & (b > 0), (b / a).sqrt(), 1.0)
    return left * scale, right / scale[:, None]
