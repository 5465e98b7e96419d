"""CP of a kernel with separate spatial axes, by plain ALS: pointwise → depthwise k×1 → depthwise 1×k → pointwise.

This method serves for comparison; `cp_epc` with `separable` gives the same layers with factors that survive rounding.

References:
    V. Lebedev et al. Speeding-up convolutional neural networks using fine-tuned CP-decomposition. ICLR 2015.
"""

from torch import nn

from edgecompress.factorizations.blocks import chain, cp_chain
from edgecompress.factorizations.blocks.layers import Convolution
from edgecompress.factorizations.protocol import Moments
from edgecompress.network.factors import Factors

Options = cp_chain.AlsOptions
DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    return cp_chain.reject(layer, separable=True)


def max_rank(layer: Convolution, options: Options) -> tuple[int]:
    return (cp_chain.max_rank(layer, separable=True),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    return cp_chain.skeleton(layer, rank[0], separable=True)


def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> str | None:
    return cp_chain.fit_als(layer, compact, options, separable=True)
