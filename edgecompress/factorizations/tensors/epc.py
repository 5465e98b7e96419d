"""Error-preserving correction: make CP factors far less sensitive to rounding at the same distance from the kernel.

    P1  min Σ_r Π_n ‖u_r^(n)‖²    s.t. ‖K − K̂‖ ≤ δ     `lower_cost(…, cost="norm")`
    P2  min ss                     s.t. ‖K − K̂‖ ≤ δ     `lower_cost(…, cost="sensitivity")`
    P3  min ‖K − K̂‖               s.t. ss ≤ c           `lower_error`

For one factor all three are a ridge regression, U(μ) = M (Γ + μ diag(w²))⁻¹, with μ set by the constraint. From a degenerate ALS
solution the correction is slow, since large components that cancel each other can shrink only together. `approach_error` therefore starts
from random factors: it minimises error² + μ·ss with extrapolation and steers μ towards the wanted error. The exact correction finishes.

References:
    A.-H. Phan et al. Stable low-rank tensor decomposition for compression of convolutional neural network. ECCV 2020.
    P. Tichavský, A.-H. Phan, A. Cichocki. Sensitivity in tensor decomposition. IEEE Signal Processing Letters 26(11), 2019.
"""

import math
from collections.abc import Callable
from typing import Final

from torch import Tensor

from edgecompress.factorizations.tensors.cp import (
    CP,
    PROGRESS_SPAN,
    CPResult,
    Extrapolation,
    KernelTensor,
    Update,
    has_settled,
    random_factors,
    run_als,
    solve_ridge,
    sweep_factors,
)
from edgecompress.factorizations.tensors.sensitivity import (
    CostKind,
    balance_factors,
    cost_weights,
    factor_cost,
    orthogonal_sensitivity,
    sensitivity_of,
)

CONSTRAINT_SLACK: Final = 5e-4  # this fraction of a constraint may stay unused, which saves solves
MAX_SOLVES: Final = 12  # bracketing and false position meet a constraint in fewer
STEER_INTERVAL: Final = 5  # every so many sweeps μ changes by (δ / error)^(2·STEER_GAIN), at most by MAX_STEER_FACTOR
STEER_GAIN: Final = 2.0
MAX_STEER_FACTOR: Final = 3.0
TINY: Final = 1e-14
TOLERANCE: Final = 1e-3  # a sweep that lowers the sensitivity by a smaller fraction does not pay
EXACT_ERROR: Final = 1e-6  # a smaller relative error is rounding and need not be preserved


def decompose_stably(
    kernel: KernelTensor,
    rank: int,
    *,
    seed: int = 0,
    starts: int = 3,
    sweeps: int = 200,
    slack: float = 0.01,
    stability: float = 1.5,
    cost: CostKind = "sensitivity",
) -> CPResult:
    """Return CP factors that survive rounding.

    Args:
        sweeps: Maximum sweeps of the approach; ALS, which sets the error, gets half as many and the correction a quarter.
        slack: Fraction by which the relative error may exceed that of ALS.
        stability: Largest sensitivity, in multiples of that of orthogonal components; where this limit binds, the error rises.
    """
    reference = run_als(kernel, rank, seed=seed, starts=starts, sweeps=max(1, sweeps // 2))
    limit = stability * orthogonal_sensitivity(kernel.shape, rank, kernel.square)
    bound = (1 + slack) * reference.error
    made, done = reference._replace(factors=balance_factors(reference.factors)), reference.sweeps
    if bound > EXACT_ERROR:
        near = approach_error(
            kernel, random_factors(kernel.shape, rank, seed, kernel.x.device), bound=bound, sweeps=sweeps, tolerance=TOLERANCE
        )
        start = near if near.error <= bound else reference
        made = lower_cost(kernel, start.factors, bound=bound, cost=cost, sweeps=max(1, sweeps // 4))
        done += near.sweeps + made.sweeps
    if sensitivity_of(made.factors) > limit:
        made = lower_error(kernel, made.factors, limit=limit, sweeps=sweeps)
        done += made.sweeps
    return made._replace(sweeps=done)


def approach_error(kernel: KernelTensor, start: CP, *, bound: float, sweeps: int, tolerance: float) -> CPResult:
    """Return factors with a relative error of `bound` or slightly less and low sensitivity, by penalised ALS from any start.

    Returns:
        The least sensitive factors within the bound, converged if the sensitivity had settled; the last factors if none were within.
    """
    wanted = (bound**2) * kernel.square
    pace, mu, square, ss = Extrapolation(start), 0.0, math.inf, math.inf
    found: tuple[float, float, CP] | None = None
    history: list[float] = []

    def solve_penalised(factors: CP, mode: int, normal: Tensor, product: Tensor) -> Tensor:
        return solve_ridge(normal, product, mu * cost_weights(factors, mode))

    done = 0
    for done in range(1, sweeps + 1):
        made, now = sweep_factors(kernel, pace.point, solve_penalised)
        made = balance_factors(made)
        cost = sensitivity_of(made)
        if done == 1:
            mu = now / (MAX_STEER_FACTOR * cost)
        if pace.offer(made, now + mu * cost):
            square, ss = now, cost
        if done > PROGRESS_SPAN and done % STEER_INTERVAL == 0:
            mu *= min(MAX_STEER_FACTOR, max(1 / MAX_STEER_FACTOR, (wanted / max(square, TINY * kernel.square)) ** STEER_GAIN))
            pace.value = square + mu * ss
        if now <= wanted and (found is None or cost < found[0]):
            found = (cost, now, made)
            history.append(cost)  # only factors within the bound count; between them the history would stand still
            if has_settled(history, tolerance):
                return CPResult(made, math.sqrt(now / kernel.square), done, converged=True)
    if found:
        return CPResult(found[2], math.sqrt(found[1] / kernel.square), done, converged=False)
    return CPResult(pace.best, math.sqrt(square / kernel.square), done, converged=False)


def lower_cost(
    kernel: KernelTensor, start: CP, *, bound: float, cost: CostKind = "sensitivity", sweeps: int = 50, tolerance: float = 1e-3
) -> CPResult:
    """Lower the cost of factors while their relative error stays within `bound` (P1, P2); no sweep raises the cost.

    A start outside the bound is only balanced.
    """
    wanted = (bound**2) * kernel.square
    guesses: dict[int, float] = {}

    def update(factors: CP, mode: int, normal: Tensor, product: Tensor) -> Tensor:
        weight, old = cost_weights(factors, mode, cost), factors[mode]

        def slack(u: Tensor) -> float:
            return (wanted - _squared_error(kernel, normal, product, u)) / wanted

        if slack(old) < 0:
            return old
        new = _solve_at_bound(normal, product, weight, slack, guesses, mode, rising=False)
        return new if new is not None and _weighted_norm(weight, new) <= _weighted_norm(weight, old) else old

    return _sweep_until_settled(kernel, balance_factors(start), update, lambda factors, _: factor_cost(factors, cost), sweeps, tolerance)


def lower_error(kernel: KernelTensor, start: CP, *, limit: float, sweeps: int = 200, tolerance: float = 1e-4) -> CPResult:
    """Lower the error of factors while their sensitivity stays within `limit` (P3); no sweep raises the error.

    A start beyond the limit is scaled down to it first, which changes the tensor.
    """
    start = balance_factors(start)
    ss = sensitivity_of(start)
    if ss > limit:
        start = [f * (limit / ss) ** (1 / (2 * (len(start) - 1))) for f in start]
    guesses: dict[int, float] = {}

    def update(factors: CP, mode: int, normal: Tensor, product: Tensor) -> Tensor:
        weight, old = cost_weights(factors, mode), factors[mode]
        room = limit - (sensitivity_of(factors) - _weighted_norm(weight, old))  # limit for this mode's part of the sensitivity

        def slack(u: Tensor) -> float:
            return (room - _weighted_norm(weight, u)) / limit

        free = solve_ridge(normal, product)
        new = free if slack(free) >= 0 else _solve_at_bound(normal, product, weight, slack, guesses, mode, rising=True)
        if new is None or _squared_error(kernel, normal, product, new) > _squared_error(kernel, normal, product, old):
            return old
        return new

    return _sweep_until_settled(kernel, start, update, lambda _, square: math.sqrt(square), sweeps, tolerance)


def _sweep_until_settled(
    kernel: KernelTensor, factors: CP, update: Update, falling: Callable[[CP, float], float], sweeps: int, tolerance: float
) -> CPResult:
    """Sweep until the quantity that `falling` returns for factors and squared error has settled."""
    history: list[float] = []
    square, done = math.inf, 0
    for done in range(1, sweeps + 1):
        factors, square = sweep_factors(kernel, factors, update)
        factors = balance_factors(factors)
        history.append(falling(factors, square))
        if has_settled(history, tolerance):
            return CPResult(factors, math.sqrt(square / kernel.square), done, converged=True)
    return CPResult(factors, math.sqrt(square / kernel.square), done, converged=False)


def _solve_at_bound(
    normal: Tensor, product: Tensor, weight: Tensor, slack: Callable[[Tensor], float], guesses: dict[int, float], mode: int, *, rising: bool
) -> Tensor | None:
    """Return U(μ) = M (Γ + μ diag(w²))⁻¹ with the slack of the constraint between 0 and CONSTRAINT_SLACK, or as near as was found.

    Returns None if no U within the constraint was found. The slack is monotone in μ, `rising` or falling; μ is bracketed and then found by
    false position in its logarithm. The last sweep's μ of the same mode, kept in `guesses`, is usually right at once.
    """
    scale = float((normal.diagonal() / weight.clamp_min(TINY)).mean())
    mu = guesses.get(mode, 1e-4 * scale)
    met: tuple[float, float, Tensor] | None = None  # log μ, slack and U of the best solution within the constraint
    unmet: tuple[float, float] | None = None
    for attempt in range(MAX_SOLVES):
        u = solve_ridge(normal, product, mu * weight)
        left = slack(u)
        if left >= 0:
            met = (math.log(mu), left, u)
            if left <= CONSTRAINT_SLACK:
                break
        else:
            unmet = (math.log(mu), left)
        if met and unmet:
            if abs(met[0] - unmet[0]) < CONSTRAINT_SLACK:
                break
            share = min(0.95, max(0.05, (met[1] - CONSTRAINT_SLACK / 2) / (met[1] - unmet[1])))
            mu = math.exp(met[0] + share * (unmet[0] - met[0]))
        else:
            step = MAX_STEER_FACTOR if attempt < 2 else 10.0
            mu *= step if (left < 0) == rising else 1 / step
        if not TINY < mu / scale < 1 / TINY:
            break
    if met is None:
        return None
    guesses[mode] = math.exp(met[0])
    return met[2]


def _weighted_norm(weight: Tensor, u: Tensor) -> float:
    """Return Σ_r w_r² ‖u_r‖²."""
    return float((weight * u.square().sum(0)).sum())


def _squared_error(kernel: KernelTensor, normal: Tensor, product: Tensor, u: Tensor) -> float:
    """Return ‖K − K̂‖² for a factor `u`, from the normal matrix and the MTTKRP of its mode."""
    return kernel.square - 2 * float((u * product).sum()) + float(((u @ normal) * u).sum())
