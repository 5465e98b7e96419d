"""Sensitivity of a CP decomposition to perturbations of its factors, e.g. by rounding them to a few bits.

With independent errors of variance σ² in every entry, E‖K̂ − K̂'‖² → σ² · ss with

    ss = Σ_n I_n Σ_r Π_{m≠n} ‖u_r^(m)‖².

References:
    P. Tichavský, A.-H. Phan, A. Cichocki. Sensitivity in tensor decomposition. IEEE Signal Processing Letters 26(11), 2019.
    A.-H. Phan et al. Stable low-rank tensor decomposition for compression of convolutional neural network. ECCV 2020.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from edgecompress.factorizations.tensors.cp import CP

CostKind = Literal["sensitivity", "norm"]


def squared_norms(factors: CP) -> list[Tensor]:
    """Return ‖u_r^(m)‖² for each mode m, `(R,)`."""
    return [f.square().sum(0) for f in factors]


def cost_weights(factors: CP, mode: int, cost: CostKind = "sensitivity") -> Tensor:
    """Return w_r² such that the part of the cost that depends on this mode's factor is Σ_r w_r² ‖u_r‖², `(R,)`.

    "norm" is Σ_r Π_m ‖u_r^(m)‖², the total norm of the components.
    """
    n = squared_norms(factors)
    others = [m for m in range(len(factors)) if m != mode]
    one = torch.ones_like(n[0])
    if cost == "norm":
        return math.prod((n[m] for m in others), start=one)
    terms = (len(factors[m]) * math.prod((n[k] for k in others if k != m), start=one) for m in others)
    return sum(terms, start=torch.zeros_like(one))


def sensitivity_of(factors: CP) -> float:
    """Return the sensitivity ss."""
    n = squared_norms(factors)
    last = len(factors) - 1
    apart = len(factors[last]) * math.prod(n[:last], start=torch.ones_like(n[0]))  # the only term without the last factor
    return float((cost_weights(factors, last) * n[last] + apart).sum())


def total_norm(factors: CP) -> float:
    """Return Σ_r λ_r², the sum of the squared norms of the components."""
    return float(math.prod(squared_norms(factors), start=torch.ones((), device=factors[0].device)).sum())


def factor_cost(factors: CP, cost: CostKind) -> float:
    """Return the sensitivity or the total norm of factors."""
    return sensitivity_of(factors) if cost == "sensitivity" else total_norm(factors)


def balance_factors(factors: CP) -> CP:
    """Scale the vectors of each component to the least sensitivity, ‖u_r^(n)‖² ∝ I_n; the tensor stays the same.

    Then ss = N (Π_n I_n)^(1/N) Σ_r λ_r^(2(N−1)/N).
    """
    order = len(factors)
    norms = [f.norm(dim=0) for f in factors]
    mean = math.prod(norms, start=torch.ones((), device=factors[0].device)) ** (1 / order)
    middle = math.prod(len(f) for f in factors) ** (1 / order)
    return [torch.where(n > 0, f * (mean * math.sqrt(len(f) / middle) / n), 0.0) for f, n in zip(factors, norms, strict=True)]


def orthogonal_sensitivity(shape: tuple[int, ...], rank: int, square: float) -> float:
    """Return the sensitivity that `rank` orthogonal components of equal norm and total squared norm `square` would have.

    This bounds the sensitivity of balanced components with Σλ² ≤ `square`; components that exceed it cancel each other.
    """
    order = len(shape)
    p = 2 * (order - 1) / order
    spread: float = order * math.prod(shape) ** (1 / order) * rank ** (1 - p / 2) * square ** (p / 2)
    return spread
