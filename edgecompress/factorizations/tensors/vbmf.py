"""Estimate the rank of a noisy low-rank matrix by empirical variational Bayes, in closed form once the variance of the noise is known.

Only the squared singular values are needed, which are the eigenvalues of the Gram matrix of the shorter side. NumPy does the work, since
its product of a matrix with its own transpose computes only half of the symmetric result.

References:
    S. Nakajima, M. Sugiyama, S. D. Babacan, R. Tomioka. Global analytic solution of fully-observed variational Bayesian matrix
    factorization. JMLR 14, 2013.
    S. Nakajima, R. Tomioka, M. Sugiyama, S. D. Babacan. Perfect dimensionality recovery by variational Bayesian PCA. NIPS 2012.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.floating[Any]]

CHUNK_COLUMNS: Final = 2048  # so many columns are summed in the precision of the matrix before the sum is added in float64
BOUND_FACTOR: Final = 2.5129  # Nakajima et al. 2013: the bound on τ is this times √α, to four digits
GOLDEN_SECTION: Final = (3 - math.sqrt(5)) / 2
MIN_FLOAT32_EIGENVALUE: Final = 1e-5  # relative to the largest; float32 products do not resolve smaller eigenvalues from noise
VARIANCE_TOLERANCE: Final = 3e-6  # the free energies of variances that are closer differ by rounding only


def evbmf_rank(matrix: Tensor) -> int:
    """Return how many components of `(m, n)` stand out from noise of unknown variance; 0 if none does.

    The result does not change under transposition, rotation or scaling.
    """
    m, n = matrix.shape
    short = matrix if m <= n else matrix.T
    return spectrum_rank(_squared_singular_values(short), max(m, n))


def spectrum_rank(squares: Values, long_side: int) -> int:
    """Return the rank as `evbmf_rank`, from all squared singular values of a matrix in falling order and its longer side."""
    if squares[0] <= 0:
        return 0
    short_side = len(squares)
    alpha = short_side / long_side
    bound = BOUND_FACTOR * math.sqrt(alpha)
    bound = (1 + bound) * (1 + alpha / bound)  # components with γ² / (M σ²) above the bound are signal
    squares = np.maximum(squares / squares.sum(), np.finfo(np.float64).tiny)
    rest = math.ceil(short_side / (1 + alpha)) - 1  # at most so many components can be signal
    low = max(float(squares[rest]) / bound, float(squares[rest:].mean()))
    variance = minimize_brent(_free_energy(squares, alpha, bound), low, 1 / short_side)
    return int(np.count_nonzero(squares > bound * variance))


def _squared_singular_values(short: Tensor) -> Values:
    """Return the squared singular values in falling order, no smaller than the rounding of the Gram matrix."""
    values: Values = short.detach().to(torch.promote_types(short.dtype, torch.float32)).cpu().numpy()
    squares = _eigenvalues(values)
    if values.dtype == np.float32 and squares[-1] < MIN_FLOAT32_EIGENVALUE * squares[0]:
        squares = _eigenvalues(values.astype(np.float64))
    return squares.clip(min=len(squares) * np.finfo(np.float64).eps * squares[0])


def _eigenvalues(short: Values) -> Values:
    """Return the eigenvalues of the Gram matrix in falling order; products are computed in the precision of the matrix."""
    gram = np.zeros((len(short), len(short)))
    for start in range(0, short.shape[1], CHUNK_COLUMNS):
        part = short[:, start : start + CHUNK_COLUMNS]
        gram += part @ part.T
    return np.linalg.eigvalsh(gram)[::-1]


def _free_energy(squares: Values, alpha: float, bound: float) -> Callable[[float], float]:
    """Return the free energy, up to a constant and a factor, as a function of the noise variance times the longer side.

    Components below the bound contribute only through sums, which are computed once.
    """
    zero = np.zeros(1)
    sums = np.concatenate([zero, squares[::-1].cumsum()])[::-1]
    logs = np.concatenate([zero, np.log(squares[::-1]).cumsum()])[::-1]

    def energy(variance: float) -> float:
        signal = int(np.count_nonzero(squares > bound * variance))
        x = squares[:signal] / variance
        b = x - (1 + alpha)
        tau = (b + np.sqrt(b * b - 4 * alpha)) / 2
        above = float((x - tau + np.log((tau + 1) / x) + alpha * np.log(tau / alpha + 1)).sum())
        return above + float(sums[signal]) / variance - float(logs[signal]) + (len(squares) - signal) * math.log(variance)

    return energy


def minimize_brent(f: Callable[[float], float], low: float, high: float) -> float:
    """Return a local minimum of `f` between `low` and `high`, both positive, by golden sections and parabolas.

    The free energy has a minimum between most neighbouring singular values near the bound, so the search method decides which is found.
    This one is that of the authors' code and its descendants, so that published ranks are reproduced.

    References:
        R. P. Brent. Algorithms for minimization without derivatives. Prentice-Hall 1973, chapter 5.
    """
    best = second = third = low + GOLDEN_SECTION * (high - low)
    f_best = f_second = f_third = f(best)
    step = earlier = 0.0
    while abs(best - (low + high) / 2) > 2 * (tolerance := VARIANCE_TOLERANCE * best) - (high - low) / 2:
        parabola = None
        if abs(earlier) > tolerance:  # the parabola through the three best points
            r, q = (best - second) * (f_best - f_third), (best - third) * (f_best - f_second)
            p, q = (best - third) * q - (best - second) * r, 2 * (r - q)
            shrinks = abs(p) < abs(q * earlier / 2)
            if shrinks and low < best + p / q < high:
                parabola = p / q
        if parabola is None:
            earlier = (high if best < (low + high) / 2 else low) - best
            step = GOLDEN_SECTION * earlier
        else:
            earlier, step = step, parabola
            if min(best + step - low, high - best - step) < 2 * tolerance:
                step = math.copysign(tolerance, (low + high) / 2 - best)
        trial = best + (step if abs(step) >= tolerance else math.copysign(tolerance, step))
        f_trial = f(trial)
        if f_trial <= f_best:
            low, high = (best, high) if trial >= best else (low, best)
            third, f_third, second, f_second, best, f_best = second, f_second, best, f_best, trial, f_trial
            continue
        low, high = (trial, high) if trial < best else (low, trial)
        if f_trial <= f_second or second == best:
            third, f_third, second, f_second = second, f_second, trial, f_trial
        elif f_trial <= f_third or third in (best, second):
            third, f_third = trial, f_trial
    return best
