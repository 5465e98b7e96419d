"""The rank of a noisy low-rank matrix by empirical variational Bayes, which has a closed form once the variance of the noise is known.

Only the squared singular values are needed, so the eigenvalues of the Gram matrix of the short side do. The work is done in NumPy: its
product of a matrix with its own transpose computes half of the symmetric result.

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

CHUNK_COLUMNS: Final = 2048  # added up in the precision of the matrix before they join the float64 total
BOUND_FACTOR: Final = 2.5129  # Nakajima et al. 2013: the bound on τ is this times √α, to four digits
GOLDEN_SECTION: Final = (3 - math.sqrt(5)) / 2
MIN_FLOAT32_EIGENVALUE: Final = (
    1e-5  # smallest eigenvalue, of the largest, that float32 products leave exact enough to tell signal from noise
)
VARIANCE_TOLERANCE: Final = 3e-6  # relative distance of two variances whose free energies still differ by more than rounding


def evbmf_rank(matrix: Tensor) -> int:
    """Return how many components of `(m, n)` stand out of noise of unknown variance; 0 if none does.

    It depends on neither transposition, rotation nor scale.
    """
    m, n = matrix.shape
    short = matrix if m <= n else matrix.T
    return spectrum_rank(_squared_singular_values(short), max(m, n))


def spectrum_rank(squares: Values, long_side: int) -> int:
    """Return the same for all squared singular values of a matrix, descending, and its longer side."""
    if squares[0] <= 0:
        return 0
    short_side = len(squares)
    alpha = short_side / long_side
    bound = BOUND_FACTOR * math.sqrt(alpha)
    bound = (1 + bound) * (1 + alpha / bound)  # on γ² / (M σ²): what is above it is signal
    squares = np.maximum(squares / squares.sum(), np.finfo(np.float64).tiny)
    rest = math.ceil(short_side / (1 + alpha)) - 1  # at most so many components can be signal
    low = max(float(squares[rest]) / bound, float(squares[rest:].mean()))
    variance = minimize_brent(_free_energy(squares, alpha, bound), low, 1 / short_side)
    return int(np.count_nonzero(squares > bound * variance))


def _squared_singular_values(short: Tensor) -> Values:
    """Descending; at least what the rounding of the Gram matrix may leave of a zero."""
    values: Values = short.detach().to(torch.promote_types(short.dtype, torch.float32)).cpu().numpy()
    squares = _eigenvalues(values)
    if values.dtype == np.float32 and squares[-1] < MIN_FLOAT32_EIGENVALUE * squares[0]:
        squares = _eigenvalues(values.astype(np.float64))
    return squares.clip(min=len(squares) * np.finfo(np.float64).eps * squares[0])


def _eigenvalues(short: Values) -> Values:
    """Eigenvalues of the Gram matrix, descending; its products are in the precision of the matrix."""
    gram = np.zeros((len(short), len(short)))
    for start in range(0, short.shape[1], CHUNK_COLUMNS):
        part = short[:, start : start + CHUNK_COLUMNS]
        gram += part @ part.T
    return np.linalg.eigvalsh(gram)[::-1]


def _free_energy(squares: Values, alpha: float, bound: float) -> Callable[[float], float]:
    """Return the free energy, up to a constant and a factor, as a function of the noise variance times the longer side.

    What is below the bound enters only through sums, which are taken once.
    """
    zero = np.zeros(1)
    sums = np.concatenate([zero, squares[::-1].cumsum()])[::-1]
    logs = np.concatenate([zero, np.log(squares[::-1]).cumsum()])[::-1]

    def at(variance: float) -> float:
        signal = int(np.count_nonzero(squares > bound * variance))
        x = squares[:signal] / variance
        b = x - (1 + alpha)
        tau = (b + np.sqrt(b * b - 4 * alpha)) / 2
        above = float((x - tau + np.log((tau + 1) / x) + alpha * np.log(tau / alpha + 1)).sum())
        return above + float(sums[signal]) / variance - float(logs[signal]) + (len(squares) - signal) * math.log(variance)

    return at


def minimize_brent(f: Callable[[float], float], low: float, high: float) -> float:
    """Return a local minimum of `f` between `low` and `high`, both positive, by golden sections and parabolas.

    The free energy has a minimum between most neighbouring singular values near the bound, so the search decides which is found. It is
    the one of the authors' code, and of those that follow it: published ranks are found again.

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
