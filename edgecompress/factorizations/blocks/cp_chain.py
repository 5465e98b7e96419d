"""CP factors as a chain of layers: pointwise, one depthwise layer for each factor of the area, pointwise."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks.layers import (
    Convolution,
    DenseLayer,
    channels_per_group,
    copy_bias,
    grouped_kernel,
    is_pointwise,
    kernel_size,
    pointwise_layer,
    spatial_layer,
    unsupported_reason,
    write_kernel,
)
from edgecompress.factorizations.protocol import NonNegativeFloat, PositiveInt
from edgecompress.factorizations.tensors.cp import CP, CPResult, KernelTensor, exact_factors, exact_rank, kernel_tensor, run_als
from edgecompress.factorizations.tensors.sensitivity import balance_factors, orthogonal_sensitivity, sensitivity_of
from edgecompress.network.factors import Factors
from edgecompress.records import Record

MAX_SENSITIVITY_RATIO = 10.0  # above 10 times that of orthogonal components, components cancel so much that rounding them shows


class AlsOptions(Record, frozen=True, kw_only=True):
    """Options of ALS: the best of `starts` random starts runs for `sweeps`, or until a sweep lowers its error by less than `tolerance`."""

    seed: int = 0
    starts: PositiveInt = 3
    sweeps: PositiveInt = 200
    tolerance: NonNegativeFloat = 1e-4


def reject(layer: nn.Module, *, separable: bool = False) -> str | None:
    """Return why CP cannot factorize a layer, None if it can; `separable` gives each spatial axis its own factor."""
    if reason := unsupported_reason(layer):
        return reason
    if is_pointwise(cast(DenseLayer, layer)):
        return "it mixes channels at one position only, CP would be svd with a layer too many"
    if channels_per_group(cast(DenseLayer, layer)) == (1, 1):
        return f"groups={cast(Convolution, layer).groups}, a depthwise kernel is a CP form already"
    size = kernel_size(cast(DenseLayer, layer))
    if separable and sum(k > 1 for k in size) < 2:
        return f"kernel {'×'.join(map(str, size))} has one axis to split, use cp3"
    return None


def axes_of_factors(layer: Convolution, *, separable: bool) -> list[tuple[int, ...]]:
    """Return the spatial axes of each depthwise factor; axes of size 1 belong to the first, as they may have stride or padding too."""
    size = kernel_size(layer)
    others = [a for a, k in enumerate(size) if k > 1][1:] if separable else []
    return [tuple(a for a in range(len(size)) if a not in others), *((a,) for a in others)]


def max_rank(layer: Convolution, *, separable: bool = False) -> int:
    """Return the smallest rank at which CP is exact for any weight of the layer."""
    out, inside = channels_per_group(layer)
    size = kernel_size(layer)
    return exact_rank((*(math.prod(size[a] for a in axes) for axes in axes_of_factors(layer, separable=separable)), inside, out))


def skeleton(layer: Convolution, rank: int, *, separable: bool = False) -> Factors:
    """Return the layers; each depthwise one has the stride, padding and dilation along its own axes, the last layer has the bias."""
    out, inside = channels_per_group(layer)
    depthwise = [spatial_layer(layer, rank, rank, slices=rank, axes=axes) for axes in axes_of_factors(layer, separable=separable)]
    return Factors(pointwise_layer(layer, inside, rank), *depthwise, pointwise_layer(layer, rank, out, bias=layer.bias is not None))


@torch.no_grad()
def fit(
    layer: Convolution,
    compact: Factors,
    solve: Callable[[KernelTensor, int], tuple[CP, str | None]],
    *,
    separable: bool = False,
    closed_form: bool = True,
) -> str | None:
    """Decompose each group, fill the layers and return the first remark about the fit, None if there is none.

    Args:
        solve: Returns the CP factors of a kernel at a rank, and a remark or None.
        closed_form: Use exact factors in closed form at ranks that permit them, instead of `solve`.
    """
    rank = channels_per_group(cast(DenseLayer, compact[0]))[0]
    groups, notes = [], []
    for k in grouped_kernel(layer):
        problem = kernel_tensor(k, separable=separable)
        if closed_form and rank >= exact_rank(problem.shape):
            factors, note = balance_factors(exact_factors(problem, rank)), None
        elif not problem.square:  # one of several groups may be all zero
            factors, note = [torch.zeros(n, rank, dtype=torch.float64, device=k.device) for n in problem.shape], None
        else:
            factors, note = solve(problem, rank)
        groups.append(factors)
        notes.append(note)
    write_factors(compact, groups)
    copy_bias(compact[-1], layer)
    return next((note for note in notes if note), None)


def fit_als(layer: Convolution, compact: Factors, options: AlsOptions, *, separable: bool = False) -> str | None:
    """Fit the layers by plain alternating least squares; return a remark, None if there is none."""

    def solve(problem: KernelTensor, rank: int) -> tuple[CP, str | None]:
        run = run_als(problem, rank, seed=options.seed, starts=options.starts, sweeps=options.sweeps, tolerance=options.tolerance)
        return balance_factors(run.factors), describe_unsettled(run, problem, "ALS")

    return fit(layer, compact, solve, separable=separable)


def write_factors(compact: Factors, groups: Sequence[CP]) -> None:
    """Write the factors `[*area, in, out]` of each group into the layers."""

    def stack_factors(mode: int) -> Tensor:
        return torch.stack([factors[mode] for factors in groups])  # (groups, n, rank)

    first, *depthwise, last = compact
    write_kernel(first, stack_factors(-2).mT)
    for mode, one in enumerate(depthwise):
        write_kernel(one, stack_factors(mode).mT)
    write_kernel(last, stack_factors(-1))


def describe_unsettled(run: CPResult, kernel: KernelTensor, what: str) -> str | None:
    """Return a remark on an iteration that did not settle or whose components cancel, None for a sound one; `what` names the method."""
    factors = balance_factors(run.factors)
    ss = sensitivity_of(factors)
    times = ss / orthogonal_sensitivity(kernel.shape, factors[0].shape[1], kernel.square)
    if run.converged and times < MAX_SENSITIVITY_RATIO:
        return None
    state = "settled" if run.converged else f"was stopped after {run.sweeps} sweeps, before it settled"
    cancel = f", {times:.3g} times that of orthogonal components, so its components cancel" if times >= MAX_SENSITIVITY_RATIO else ""
    remedy = "raise sweeps or use cp_epc" if times >= MAX_SENSITIVITY_RATIO else "raise sweeps or the rank"
    return f"{what} {state}: relative error {run.error:.3g}, sensitivity {ss:.3g}{cancel}; {remedy}"
