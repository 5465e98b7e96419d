"""CP with factors that survive rounding: the layers of cp3 (or cp4), by error-preserving correction.

Plain ALS gives the error to preserve. From a new start, factors with that error and low sensitivity are then approached and corrected.
If the components of even those cancel each other, the sensitivity is bounded instead, at the price of a larger error; the fit says so.

References:
    A.-H. Phan et al. Stable low-rank tensor decomposition for compression of convolutional neural network. ECCV 2020.
"""

from typing import Literal

from torch import nn

from edgecompress.factorizations.blocks import chain, cp_chain
from edgecompress.factorizations.blocks.layers import Convolution
from edgecompress.factorizations.protocol import Moments, NonNegativeFloat, PositiveFloat, PositiveInt
from edgecompress.factorizations.tensors.cp import CP, KernelTensor
from edgecompress.factorizations.tensors.epc import decompose_stably
from edgecompress.network.factors import Factors
from edgecompress.records import Record


class Options(Record, frozen=True, kw_only=True):
    """Effort of the iterations, and limits on error and sensitivity.

    Attributes:
        seed, starts: As for cp3.
        sweeps: Maximum sweeps of the approach; ALS before it gets half as many, the correction after it a quarter.
        slack: Relative error permitted above that of ALS, as a fraction of it. For 4 bits 0.1 gives better factors.
        stability: Largest sensitivity, in multiples of that of as many orthogonal components.
        cost: Quantity that the correction lowers: the sensitivity (P2) or the total norm of the components (P1).
        separable: Give each spatial axis its own layer, as cp4 does.
    """

    seed: int = 0
    starts: PositiveInt = 3
    sweeps: PositiveInt = 200
    slack: NonNegativeFloat = 0.01
    stability: PositiveFloat = 1.5
    cost: Literal["sensitivity", "norm"] = "sensitivity"
    separable: bool = False


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    return cp_chain.reject(layer)


def max_rank(layer: Convolution, options: Options) -> tuple[int]:
    return (cp_chain.max_rank(layer, separable=options.separable),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    return cp_chain.skeleton(layer, rank[0], separable=options.separable)


def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> str | None:
    def solve(kernel: KernelTensor, rank: int) -> tuple[CP, str | None]:
        run = decompose_stably(
            kernel,
            rank,
            seed=options.seed,
            starts=options.starts,
            sweeps=options.sweeps,
            slack=options.slack,
            stability=options.stability,
            cost=options.cost,
        )
        return run.factors, cp_chain.describe_unsettled(run, kernel, "CP-EPC")

    return cp_chain.fit(layer, compact, solve, separable=options.separable)
