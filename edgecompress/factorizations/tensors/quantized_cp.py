"""Choose CP factors on an integer grid, so that quantizing the layers made of them changes nothing.

ADMM moves all factors towards the grid while they still compensate for each other. Then one factor at a time is rounded column by column:
each column's rounding error is passed on to the columns not yet rounded, and the result is kept if it lowers the error.

A grid is symmetric, k · scale with |k| ≤ 2^(bits−1) − 1, and every scale has a value with the largest k, so that a quantizer which derives
the scale from the largest value finds the same grid.

References:
    D. Ermilov et al. Quantization aware factorization for deep neural network compression. JAIR 81, 2024.
    E. Frantar et al. GPTQ: accurate post-training quantization for generative pre-trained transformers. ICLR 2023.
"""

import math
from typing import Final

import torch
from torch import Tensor

from edgecompress.factorizations.tensors.cp import CP, CPResult, KernelTensor, has_settled, solve_ridge, sweep_factors

# Penalty of ADMM in mean diagonals of the normal matrix: a smaller one leaves 4-bit factors off the grid, a larger one stops their moves.
PENALTY: Final = 1.0
DAMPING: Final = 1e-6  # times the mean diagonal, so that columns without influence on the error stay bounded
CLIP_FRACTIONS: Final = (1.0, 0.9, 0.8)  # clipping the largest values to such a fraction gives a finer grid, which may have a lower error
MIN_IMPROVEMENT: Final = 1e-4  # a sweep that lowers the error by a smaller fraction is the last


def grid_scales(factor: Tensor, bits: int, channel: int | None) -> Tensor:
    """Return the step of the finest grid that covers `factor`: one per index of axis `channel`, or one for all if it is None."""
    peak = factor.abs().amax() if channel is None else factor.abs().amax(1 - channel, keepdim=True)
    return torch.where(peak > 0, peak / (2 ** (bits - 1) - 1), 1.0)


def round_to_grid(factor: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the nearest values on the grid."""
    most = 2 ** (bits - 1) - 1
    return (factor / scale).round().clamp(-most, most) * scale


def scale_axes(factors: CP, per_channel: bool) -> list[int | None]:
    """Return for each factor the axis with one scale per index: its layer's output channel; None for one scale per layer."""
    return [None if not per_channel else 0 if mode == len(factors) - 1 else 1 for mode in range(len(factors))]


def round_factors(factors: CP, bits: int, *, per_channel: bool) -> CP:
    """Return each factor rounded on its own, as quantization after the decomposition would."""
    return [round_to_grid(f, grid_scales(f, bits, c), bits) for f, c in zip(factors, scale_axes(factors, per_channel), strict=True)]


def quantize_factors(kernel: KernelTensor, start: CP, *, bits: int, per_channel: bool = True, sweeps: int = 100) -> CPResult:
    """Return factors on a grid of `bits`, whose error is at most that of `start` rounded factor by factor.

    Args:
        start: Float factors of low sensitivity.
        sweeps: Maximum sweeps of ADMM, and of the rounding.
    """
    axes = scale_axes(start, per_channel)
    first = round_factors(start, bits, per_channel=per_channel)
    found = run_admm(kernel, start, axes, bits=bits, sweeps=sweeps)
    best = min(found, first, key=lambda factors: _relative_error(kernel, factors))

    def update(factors: CP, mode: int, normal: Tensor, product: Tensor) -> Tensor:
        old = factors[mode]
        free = solve_ridge(normal, product, DAMPING * float(normal.diagonal().mean()))
        tried = [round_with_compensation(normal, free, clip * grid_scales(free, bits, axes[mode]), bits) for clip in CLIP_FRACTIONS]
        return min([old, *tried], key=lambda u: float(((u @ normal - 2 * product) * u).sum()))

    history = [_relative_error(kernel, best)]
    for done in range(1, sweeps + 1):
        best, square = sweep_factors(kernel, best, update)
        history.append(math.sqrt(square / kernel.square))
        if history[-1] >= history[-2] * (1 - MIN_IMPROVEMENT):
            return CPResult(best, history[-1], done, converged=True)
    return CPResult(best, history[-1], sweeps, converged=has_settled(history, MIN_IMPROVEMENT))


def run_admm(kernel: KernelTensor, start: CP, axes: list[int | None], *, bits: int, sweeps: int, penalty: float = PENALTY) -> CP:
    """Return the best factors on the grid that ADMM visits: A ← ridge to (Ã − Λ), Ã ← Q(A + Λ), Λ ← Λ + A − Ã, mode by mode.

    With a penalty of 0, the steps are those of plain ALS.
    """
    grid = [round_to_grid(f, grid_scales(f, bits, c), bits) for f, c in zip(start, axes, strict=True)]
    dual = [torch.zeros_like(f) for f in start]

    def update(factors: CP, mode: int, normal: Tensor, product: Tensor) -> Tensor:
        rho = penalty * float(normal.diagonal().mean())
        free = solve_ridge(normal, product + rho * (grid[mode] - dual[mode]), rho)
        shifted = free + dual[mode]
        grid[mode] = round_to_grid(shifted, grid_scales(shifted, bits, axes[mode]), bits)
        dual[mode] = shifted - grid[mode]
        return free

    factors, best, least = start, list(grid), _relative_error(kernel, grid)
    for _ in range(sweeps):
        factors, _ = sweep_factors(kernel, factors, update)
        if (error := _relative_error(kernel, grid)) < least:
            best, least = list(grid), error
    return best


def round_with_compensation(normal: Tensor, wanted: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round `(n, R)` to the grid, minimising ‖(U − wanted) Γ^½‖ greedily: the heaviest column first, the others compensate its error."""
    most = 2 ** (bits - 1) - 1
    order = torch.argsort(normal.diagonal(), descending=True)
    damped = normal[order][:, order]
    damped = damped + DAMPING * float(damped.diagonal().mean()) * torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    step = scale.expand_as(wanted)[:, order]
    steps = wanted[:, order] / step
    peak = steps.abs() >= most - 1e-6  # these values stay at the end of the grid, whatever error is passed on to them
    free, made = wanted[:, order].clone(), torch.empty_like(steps)
    for r in range(len(order)):
        k = torch.where(peak[:, r], steps[:, r].sign() * most, (free[:, r] / step[:, r]).round().clamp(-most, most))
        made[:, r] = k * step[:, r]
        free[:, r:] -= torch.outer((free[:, r] - made[:, r]) / upper[r, r], upper[r, r:])
    back = torch.empty_like(made)
    back[:, order] = made
    return back


def _relative_error(kernel: KernelTensor, factors: CP) -> float:
    """Return the relative error of factors."""
    _, square = sweep_factors(kernel, factors, lambda f, mode, _normal, _product: f[mode])
    return math.sqrt(square / kernel.square)
