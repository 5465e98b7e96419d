"""Tensor trains: A[i₁, …, i_d] = G₁[i₁] … G_d[i_d] with cores G_k of shape `(r_{k−1}, n_k, r_k)` and r₀ = r_d = 1.

Instead of an SVD of each unfolding, the Gram matrix of its shorter side is decomposed.

References:
    I. V. Oseledets. Tensor-train decomposition. SIAM J. Sci. Comput. 33(5), 2011.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from edgecompress.factorizations.tensors.lowrank import CHUNK_VALUES, balance_norms, gram_matrix, multiply_in_chunks

BALANCE_SWEEPS: Final = 10  # each sweep brings the norms of neighbours nearer to each other by a constant factor
RankRule = Callable[[int, list[Tensor]], int]  # (bond, squared singular values of each tensor, largest first) → rank


def max_ranks(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest ranks that are exact for any tensor of `sizes`."""
    return tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))


def feasible_ranks(ranks: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks lowered to r_k ≤ r_{k−1} n_k and r_k ≤ n_{k+1} r_{k+1}; trains of these ranks represent the same tensors."""
    made = list(ranks)
    for k in range(len(made)):
        made[k] = min(made[k], sizes[k] * (made[k - 1] if k else 1))
    for k in reversed(range(len(made))):
        made[k] = min(made[k], sizes[k + 1] * (made[k + 1] if k + 1 < len(made) else 1))
    return tuple(made)


def tt_svd(tensor: Tensor, *, ranks: Sequence[int] | None = None, epsilon: float = 0.0) -> list[Tensor]:
    """Return the cores of a tensor, float64, all but the last orthonormal as matrices `(r_{k−1} n_k, r_k)`.

    The error is at most √(d−1) times that of the best train of the same ranks.

    Args:
        tensor: A tensor of any floating dtype; no float64 copy of it is made.
        ranks: One rank per bond, as `feasible_ranks` returns them; None for the ranks that bring ‖A − Â‖ to at most `epsilon`·‖A‖.
    """
    return _split_cores([tensor], _truncation_rule([tensor], epsilon) if ranks is None else lambda k, _: ranks[k])[0]


def common_ranks(tensors: Sequence[Tensor], epsilon: float) -> tuple[int, ...]:
    """Return ranks at which `tt_svd` brings each of several tensors of one shape within `epsilon` of its norm."""
    return tuple(core.shape[2] for core in _split_cores(tensors, _truncation_rule(tensors, epsilon))[0][:-1])


def contract_cores(cores: Sequence[Tensor]) -> Tensor:
    """Return the tensor, shape `(*batch, n₁, …, n_d)`, of cores `(*batch, r, n, s)`.

    If r₀ or r_d is not 1, it is multiplied into the first or last size.
    """
    batch = cores[0].shape[:-3]
    total = cores[0].flatten(-3, -2)  # (*batch, product of the sizes so far, r)
    for core in cores[1:]:
        total = (total @ core.flatten(-2)).reshape(*batch, -1, core.shape[-1])
    sizes = [core.shape[-2] for core in cores]
    sizes[0] *= cores[0].shape[-3]
    sizes[-1] *= cores[-1].shape[-1]
    return total.reshape(*batch, *sizes)


def balance_cores(cores: Sequence[Tensor]) -> list[Tensor]:
    """Divide the norm of each bond's components evenly between the two cores that they join; the tensor stays the same."""
    made = list(cores)
    for _, k in itertools.product(range(BALANCE_SWEEPS), range(len(made) - 1)):
        left, right = balance_norms(made[k].flatten(0, 1), made[k + 1].flatten(1))
        made[k], made[k + 1] = left.view_as(made[k]), right.view_as(made[k + 1])
    return made


def _split_cores(tensors: Sequence[Tensor], choose: RankRule) -> list[list[Tensor]]:
    """Split tensors into cores from left to right, with the same ranks for all tensors."""
    sizes = tensors[0].shape
    rests = [tensor.reshape(1, -1) for tensor in tensors]
    trains: list[list[Tensor]] = [[] for _ in tensors]
    rank = 1
    for k, n in enumerate(sizes[:-1]):
        before, rests = rank, [rest.reshape(rank * n, -1) for rest in rests]
        spectra = [torch.linalg.eigh(gram_matrix(_transpose_to_wide(rest))) for rest in rests]
        rank = choose(k, [spectrum.eigenvalues.flip(0) for spectrum in spectra])
        for i, spectrum in enumerate(spectra):
            left, rests[i] = _project(rests[i], spectrum.eigenvectors[:, -rank:].flip(1))
            trains[i].append(left.reshape(before, n, rank))
    return [[*train, rest.double().reshape(rank, -1, 1)] for train, rest in zip(trains, rests, strict=True)]


def _transpose_to_wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _project(matrix: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Project `(m, n)` on the singular vectors `top` of its shorter side; return orthonormal `(m, r)` and the projection `(r, n)`."""
    if matrix.shape[0] <= matrix.shape[1]:
        return top, multiply_in_chunks(top.T, matrix)
    q, upper = torch.linalg.qr(multiply_in_chunks(top.T, matrix.T).T)
    return q, upper @ top.T


def _truncation_rule(tensors: Sequence[Tensor], epsilon: float) -> RankRule:
    """Return the rule that truncates each bond by at most ε‖A‖/√(d−1); errors are orthogonal, so their squares sum to at most ε²‖A‖²."""
    bonds = max(1, tensors[0].ndim - 1)
    bounds = [epsilon**2 * _norm_squared(tensor) / bonds for tensor in tensors]

    def choose(_: int, spectra: list[Tensor]) -> int:
        return max(_rank_within(values, bound, noise(values)) for values, bound in zip(spectra, bounds, strict=True))

    def noise(values: Tensor) -> float:  # rounding of a Gram matrix's eigenvalues; it counts as error, so that the bound holds for any ε
        return len(values) * torch.finfo(values.dtype).eps * float(values[0])

    return choose


def _rank_within(values: Tensor, bound: float, noise: float = 0.0) -> int:
    """Return how many of `values`, in falling order, must be kept so that the others sum to at most `bound`; at least 1."""
    tails = values.clamp_min(0).flip(0).cumsum(0).flip(0)  # tails[r]: sum of the values dropped when r are kept
    fine = (tails[1:] + noise <= bound).nonzero()
    return int(fine[0]) + 1 if len(fine) else len(values)


def _norm_squared(tensor: Tensor) -> float:
    return sum(float(part.double().square().sum()) for part in torch.split(tensor.reshape(-1), CHUNK_VALUES))
