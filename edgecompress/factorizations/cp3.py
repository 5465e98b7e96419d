"""CP of a kernel with its area as one axis: pointwise → depthwise with the geometry → pointwise, by plain ALS.

It shows what alternating least squares gives; `cp_epc` gives the same layers with factors that survive rounding.

References:
    V. Lebedev et al. Speeding-up convolutional neural networks using fine-tuned CP-decomposition. ICLR 2015.
"""

from torch import nn

from edgecompress.factorizations.blocks import chain, cp_chain
from edgecompress.factorizations.blocks.layers import Convolution
from edgecompress.factorizations.protocol import Count, Factors, Moments, NotNegative
from edgecompress.records import Record
from edgecompress.tensors.cp import CP, Kernel, als
from edgecompress.tensors.sensitivity import balanced


class Options(Record, frozen=True, kw_only=True):
    """The best of several random `starts` goes on for at most `sweeps`, until its error falls by less than `tolerance` a sweep."""

    seed: int = 0
    starts: Count = 3
    sweeps: Count = 200
    tolerance: NotNegative = 1e-4


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    return cp_chain.reject(layer)


def max_rank(layer: Convolution, options: Options) -> tuple[int]:
    return (cp_chain.max_rank(layer),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    return cp_chain.skeleton(layer, rank[0])


def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> str | None:
    def solve(kernel: Kernel, rank: int) -> tuple[CP, str | None]:
        run = als(kernel, rank, seed=options.seed, starts=options.starts, sweeps=options.sweeps, tolerance=options.tolerance)
        return balanced(run.factors), cp_chain.remark(run, kernel, "ALS")

    return cp_chain.fit(layer, compact, solve)
