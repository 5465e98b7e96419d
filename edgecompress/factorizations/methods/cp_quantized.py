"""CP with factors on an int8 or int4 grid: the layers of cp3, which quantization leaves unchanged.

A kernel that cp_epc reproduces closely loses more by 4-bit rounding than by its rank. This method therefore chooses the factors on the
grid instead of rounding them to it.

References:
    D. Ermilov et al. Quantization aware factorization for deep neural network compression. JAIR 81, 2024.
"""

from typing import Literal

from torch import nn

from edgecompress.factorizations.blocks import chain, cp_chain
from edgecompress.factorizations.blocks.layers import Convolution
from edgecompress.factorizations.protocol import Moments, NonNegativeFloat, PositiveInt
from edgecompress.factorizations.tensors.cp import CP, KernelTensor
from edgecompress.factorizations.tensors.epc import decompose_stably
from edgecompress.factorizations.tensors.quantized_cp import quantize_factors
from edgecompress.network.factors import Factors
from edgecompress.records import Record


class Options(Record, frozen=True, kw_only=True):
    """The grid, and the effort of the iterations.

    Attributes:
        bits: Bits of each factor.
        per_channel: One scale per output channel of each layer, as in TFLite, or one per layer.
        seed, starts, sweeps, slack: For the float factors at the start, as for cp_epc; `sweeps` also limits those on the grid.
    """

    bits: Literal[8, 4] = 8
    per_channel: bool = True
    seed: int = 0
    starts: PositiveInt = 3
    sweeps: PositiveInt = 200
    slack: NonNegativeFloat = 0.01


DATA_AWARE = False
reconstruct = chain.reconstruct


def reject(layer: nn.Module) -> str | None:
    return cp_chain.reject(layer)


def max_rank(layer: Convolution, options: Options) -> tuple[int]:
    return (cp_chain.max_rank(layer),)


def skeleton(layer: Convolution, rank: tuple[int, ...], options: Options) -> Factors:
    return cp_chain.skeleton(layer, rank[0])


def fit(layer: Convolution, compact: Factors, options: Options, moments: Moments | None) -> str | None:
    def solve(kernel: KernelTensor, rank: int) -> tuple[CP, str | None]:
        near = decompose_stably(kernel, rank, seed=options.seed, starts=options.starts, sweeps=options.sweeps, slack=options.slack)
        run = quantize_factors(kernel, near.factors, bits=options.bits, per_channel=options.per_channel, sweeps=options.sweeps // 2)
        if run.converged and near.converged:
            return run.factors, None
        return run.factors, (
            f"quantized CP was stopped after {near.sweeps + run.sweeps} sweeps, before it settled: relative error {run.error:.3g} with "
            f"{options.bits}-bit factors, {near.error:.3g} in float; raise sweeps"
        )

    return cp_chain.fit(layer, compact, solve, closed_form=False)
