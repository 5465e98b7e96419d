"""Relative error between a layer's weight and the weight that its factors stand for."""

import math
from typing import Final, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.methods import METHODS
from edgecompress.network.factors import Factors

POWER_ITERATIONS: Final = 12  # residuals have flat spectra; twelve iterations find the largest singular value to a few percent
CHUNKS: Final = 64  # a weight is converted to float64 in so many parts, so that no whole copy of it is held


def relative_error(layer: nn.Module, method: str, compact: Factors) -> float:
    """Return ‖W − Ŵ‖_F / ‖W‖_F, 0 for an all-zero weight that is reproduced."""
    return reconstruction_errors(layer, method, compact)[0]


@torch.no_grad()
def reconstruction_errors(layer: nn.Module, method: str, compact: Factors) -> tuple[float, float]:
    """Return ‖W − Ŵ‖ / ‖W‖ in the Frobenius norm and in the spectral norm of the matrices (out, all other axes).

    Power iteration finds the spectral norms from below. An all-zero weight that is reproduced has the errors 0 and 0.
    """
    weight, rebuilt = cast(Tensor, layer.weight).flatten(1), METHODS[method].reconstruct(compact).flatten(1)
    difference = math.hypot(*(float((a - b).norm()) for a, b in zip(rebuilt.chunk(CHUNKS), weight.chunk(CHUNKS), strict=True)))
    norm = math.hypot(*(float(part.double().norm()) for part in weight.chunk(CHUNKS)))
    if norm == 0:
        return difference, difference
    return difference / norm, _spectral_norm(weight, rebuilt) / _spectral_norm(weight)


def _spectral_norm(weight: Tensor, subtracted: Tensor | None = None) -> float:
    """Return the largest singular value of `weight` − `subtracted`, without forming the difference."""
    v = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(weight.device)
    norm = 0.0
    for _ in range(POWER_ITERATIONS):
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        u = _multiply(weight, v) - (0 if subtracted is None else _multiply(subtracted, v))  # (out,)
        norm = float(u.norm())
        v = _multiply(weight.T, u) - (0 if subtracted is None else _multiply(subtracted.T, u))  # (all other axes,)
    return norm


def _multiply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply in the matrix's own precision and return float64."""
    return (matrix @ vector.to(matrix.dtype)).double()
