"""Canonical polyadic decomposition of a convolution kernel by alternating least squares: K ≈ Σ_r a_r ∘ … ∘ b_r ∘ c_r.

A kernel has a few short axes (its area) and two long ones (in, out). A sweep contracts the kernel with each long factor once, and solves
all short factors from those two results, twice per sweep at almost no cost. Only R×R normal matrices are factored, and no Khatri–Rao
product of the long factors is formed.

Factors are lists of `(n_i, R)` in the order `[*area, in, out]`, float64.

References:
    P. Comon, X. Luciani, A. de Almeida. Tensor decompositions, alternating least squares and other tales. J. Chemometrics 23, 2009.
    A. Ang, J. Cohen, N. Gillis, L. Hien. Accelerating block coordinate descent for nonnegative tensor factorization. NLAA 28(5), 2021.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor

CP = list[Tensor]
Update = Callable[[CP, int, Tensor, Tensor], Tensor]
"""(factors, mode, normal matrix Γ, MTTKRP) → new factor of that mode; Γ and the MTTKRP, the matricized tensor times Khatri–Rao product, are
those of all other modes."""

PROGRESS_SPAN: Final = 10  # progress is judged over so many sweeps, since that of a single one varies
JITTER: Final = 1e-13  # times the mean diagonal: overcomplete factors make normal matrices singular
START_SWEEPS: Final = 10  # every random start gets so many sweeps, enough to tell which one is best
NEGLIGIBLE_ERROR: Final = 1e-7  # smaller relative errors are hidden by the rounding of ‖K‖²


class KernelTensor(NamedTuple):
    """A kernel in the layout that sweeps use.

    Attributes:
        x: `(area, in, out)`, float64, contiguous.
        area: Sizes of the axes that are flattened to the first axis of `x`.
        square: ‖x‖².
    """

    x: Tensor
    area: tuple[int, ...]
    square: float

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.area, *self.x.shape[1:]


class CPResult(NamedTuple):
    """Result of an iteration: factors, relative error, number of sweeps, and whether it converged."""

    factors: CP
    error: float
    sweeps: int
    converged: bool


def kernel_tensor(k: Tensor, *, separable: bool = False) -> KernelTensor:
    """Return a kernel `(out, in, *area)` in the layout for sweeps; its area is one axis, or each axis longer than 1 if `separable`."""
    size = tuple(n for n in k.shape[2:] if n > 1)
    x = k.double().flatten(2).permute(2, 1, 0).contiguous()
    return KernelTensor(x, size if separable and size else (len(x),), float(x.square().sum()))


def exact_rank(shape: tuple[int, ...]) -> int:
    """Return the smallest rank at which every tensor of `shape` has an exact decomposition in closed form: one term per fibre."""
    return math.prod(shape) // max(shape)


def exact_factors(kernel: KernelTensor, rank: int) -> CP:
    """Return the exact decomposition into fibres along the longest axis; components beyond `exact_rank` are zero."""
    shape = kernel.shape
    long = max(range(len(shape)), key=shape.__getitem__)
    fibres = kernel.x.reshape(shape).movedim(long, 0).flatten(1)  # (longest, others)
    others = [n for i, n in enumerate(shape) if i != long]
    index = list(torch.unravel_index(torch.arange(fibres.shape[1], device=fibres.device), others))
    unit = [torch.eye(n, dtype=fibres.dtype, device=fibres.device)[i].T for n, i in zip(others, index, strict=True)]
    unit.insert(long, fibres)
    return [torch.nn.functional.pad(f, (0, rank - f.shape[1])) for f in unit]


def random_factors(shape: tuple[int, ...], rank: int, seed: int, device: torch.device | str = "cpu") -> CP:
    """Return factors with normally distributed entries, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, rank, generator=generator, dtype=torch.float64).to(device) for n in shape]


def compose_tensor(factors: CP) -> Tensor:
    """Return the tensor `(out, in, *area)` equal to the factors."""
    *short, inside, out = factors
    total = torch.einsum("tr,sr,ar->tsa", out, inside, khatri_rao(short))
    return total.unflatten(2, [len(f) for f in short])  # type: ignore[no-untyped-call,no-any-return]


def khatri_rao(factors: CP) -> Tensor:
    """Return the columnwise Kronecker product, `(Π n_i, R)`."""
    total = factors[0]
    for f in factors[1:]:
        total = (total[:, None] * f[None]).flatten(0, 1)
    return total


def sweep_factors(kernel: KernelTensor, factors: CP, update: Update) -> tuple[CP, float]:
    """Update every factor once; return the factors and their squared error."""
    state = _SweepState(list(factors), [f.T @ f for f in factors])
    inside, out = len(kernel.area), len(kernel.area) + 1
    _half_sweep(state, torch.matmul(kernel.x.mT, state.factors[inside]), update, fixed=inside, free=out)
    last = _half_sweep(state, torch.matmul(kernel.x, state.factors[out]), update, fixed=out, free=inside)
    square = kernel.square - 2 * float((last * state.factors[inside]).sum()) + float(cast(Tensor, math.prod(state.grams)).sum())
    return state.factors, max(0.0, square)


class _SweepState(NamedTuple):
    """Factors during a sweep, and U_mᵀU_m of each; both are changed in place."""

    factors: CP
    grams: list[Tensor]

    def renew(self, mode: int, product: Tensor, update: Update) -> None:
        normal = math.prod(g for m, g in enumerate(self.grams) if m != mode)
        new = update(self.factors, mode, cast(Tensor, normal), product)
        self.factors[mode], self.grams[mode] = new, new.T @ new


def _half_sweep(state: _SweepState, contracted: Tensor, update: Update, *, fixed: int, free: int) -> Tensor:
    """Update the short factors and one long factor from the kernel contracted with the other long factor.

    Args:
        contracted: The contracted kernel, `(area, n, R)`, with `n` the length of the free axis.
        fixed: Mode of the long factor that the kernel was contracted with.
        free: Mode of the long factor to update.

    Returns:
        The MTTKRP of the free axis.
    """
    made, short = state.factors, min(fixed, free)
    summed = torch.stack([(part * made[free]).sum(0) for part in contracted])  # (area, R)
    grid = summed.reshape(*(len(f) for f in made[:short]), -1)
    for mode in range(short):
        total = grid
        for other in reversed(range(short)):
            if other != mode:
                shape = [1] * short + [-1]
                shape[other] = len(made[other])
                total = (total * made[other].reshape(shape)).sum(other, keepdim=True)
        state.renew(mode, total.reshape(made[mode].shape), update)
    product = torch.zeros_like(made[free])
    for part, weight in zip(contracted, khatri_rao(made[:short]), strict=True):
        product.addcmul_(part, weight)
    state.renew(free, product, update)
    return product


def solve_ridge(normal: Tensor, product: Tensor, penalty: Tensor | float = 0.0) -> Tensor:
    """Return `product (normal + diag(penalty))⁻¹`, the linear solve behind every update of a factor.

    Args:
        normal: `(R, R)`, positive semidefinite.
        product: `(n, R)`.
        penalty: `(R,)` or one number, not negative.
    """
    jitter = JITTER * float(normal.diagonal().mean()) or JITTER
    while True:
        shifted = normal.clone()
        shifted.diagonal().add_(penalty + jitter)
        lower, failed = torch.linalg.cholesky_ex(shifted)
        if not int(failed):
            return torch.cholesky_solve(product.T, lower).T
        jitter *= 10


def least_squares_update(factors: CP, mode: int, normal: Tensor, product: Tensor) -> Tensor:
    """Return the new factor of plain ALS."""
    return solve_ridge(normal, product)


def even_norms(factors: CP) -> CP:
    """Scale the vectors of each component to equal norms; the tensor stays the same."""
    norms = [f.norm(dim=0) for f in factors]
    mean = math.prod(norms, start=torch.ones((), device=factors[0].device)) ** (1 / len(factors))
    return [torch.where(n > 0, f * (mean / n), 0.0) for f, n in zip(factors, norms, strict=True)]


def run_als(
    kernel: KernelTensor,
    rank: int,
    *,
    seed: int = 0,
    starts: int = 1,
    sweeps: int = 200,
    tolerance: float = 1e-4,
    until: float = NEGLIGIBLE_ERROR,
) -> CPResult:
    """Decompose by alternating least squares with extrapolation between sweeps, from the best of several random starts.

    Args:
        sweeps: Maximum number of sweeps, including those of the chosen start.
        tolerance: Converged when the relative error falls by less than this fraction per sweep, over PROGRESS_SPAN sweeps.
        until: Stop at this relative error, by default the one that rounding of ‖K‖² hides.
    """
    begun = [
        _run_extrapolated(kernel, random_factors(kernel.shape, rank, seed + i, kernel.x.device), min(START_SWEEPS, sweeps), 0.0, until)
        for i in range(starts)
    ]
    best = min(begun, key=lambda run: run.error)
    if best.error <= until or best.sweeps >= sweeps or starts == 0:
        return best
    end = _run_extrapolated(kernel, best.factors, sweeps - best.sweeps, tolerance, until)
    return end._replace(sweeps=best.sweeps + end.sweeps)


def _run_extrapolated(kernel: KernelTensor, factors: CP, sweeps: int, tolerance: float, until: float) -> CPResult:
    """Run ALS from extrapolated points; a step that does not lower the error is taken back, and the extrapolation is shortened."""
    pace = Extrapolation(factors)
    history: list[float] = []
    for k in range(1, sweeps + 1):
        made, square = sweep_factors(kernel, pace.point, least_squares_update)
        pace.offer(even_norms(made), square)
        history.append(math.sqrt(pace.value / kernel.square))
        if history[-1] <= until or has_settled(history, tolerance):
            return CPResult(pace.best, history[-1], k, converged=True)
    return CPResult(pace.best, history[-1], sweeps, converged=False)


def has_settled(history: list[float], tolerance: float) -> bool:
    """Return whether a falling quantity fell by less than the fraction `tolerance` per step over the last PROGRESS_SPAN steps."""
    return len(history) > PROGRESS_SPAN and history[-1] >= history[-1 - PROGRESS_SPAN] * (1 - tolerance * PROGRESS_SPAN)


class Extrapolation:
    """Extrapolation of the next starting point, x + β(x − x_before): β grows while the value falls and is cut when it rises.

    Algorithm 1 of Ang et al.

    Attributes:
        best: The factors of the lowest value so far.
        value: The lowest value so far.
        point: Starting point of the next sweep.
    """

    GROW: Final = 1.05
    GROW_LIMIT: Final = 1.01
    CUT: Final = 1.5

    def __init__(self, factors: CP) -> None:
        self.best = self.point = factors
        self.value = math.inf
        self._beta, self._limit = 0.5, 1.0

    def offer(self, factors: CP, value: float) -> bool:
        """Accept the factors and the value of a sweep from `point` if the value fell; return whether it did."""
        if value <= self.value:
            first = math.isinf(self.value)
            self.point = factors if first else [f + self._beta * (f - b) for f, b in zip(factors, self.best, strict=True)]
            self.best, self.value = factors, value
            self._limit = min(1.0, self.GROW_LIMIT * self._limit)
            self._beta = min(self._limit, self.GROW * self._beta)
            return True
        self.point = self.best
        self._limit, self._beta = self._beta, self._beta / self.CUT
        return False
