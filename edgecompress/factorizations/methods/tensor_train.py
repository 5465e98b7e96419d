"""Tensor trains: a Linear as a TT-matrix over modes of its features, a convolution as a train along (in | each spatial axis | out).

A convolution becomes pointwise → one convolution along each axis → pointwise: ordinary layers for every converter and kernel library. The
form that also factorizes the channels (Garipov et al.) has fewer weights, but permutes more axes than mobile kernels support.

With `run="dense"` only the stored weights shrink: the layer contracts its cores to the dense weight, which is what artifacts contain.

References:
    A. Novikov, D. Podoprikhin, A. Osokin, D. Vetrov. Tensorizing neural networks. NeurIPS 2015.
    T. Garipov, D. Podoprikhin, A. Novikov, D. Vetrov. Ultimate tensorization: compressing convolutional and FC layers alike. 2016.
"""

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, cast

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations.blocks import chain
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
)
from edgecompress.factorizations.blocks.tensor_train import (
    Layout,
    RematerializedLayer,
    TensorTrainLinear,
    contract_matrix,
    read_cores,
    write_cores,
)
from edgecompress.factorizations.protocol import Moments
from edgecompress.factorizations.tensors import tensor_train as trains
from edgecompress.factorizations.timing import median_ms
from edgecompress.network.factors import Factors
from edgecompress.records import Record

RunMode = Literal["chain", "dense"]
MeasureLatency = Callable[[Sequence[nn.Module], tuple[int, ...]], Sequence[float]]  # (layers, input shape without batch) → ms of each

DATA_AWARE = False


class Options(Record, frozen=True, kw_only=True):
    """The tensor that a layer's weight is reshaped to, and how the train runs.

    Attributes:
        cores: Number of cores of a Linear. With 2 the train is the SVD of a rearranged weight and has no fewer weights than an SVD. A
            convolution has one core for each axis on which its kernel is longer than 1, and two for its channels.
        in_modes, out_modes: Modes of a Linear, one each per core, with the products `in_features` and `out_features`. Empty: balanced
            modes, input modes falling and output modes rising, the order that is cheapest to contract.
        run: "chain" runs the cores one after another; "dense" contracts them to the dense weight and runs that. See `faster_run_mode`.
    """

    cores: int = 3
    in_modes: tuple[int, ...] = ()
    out_modes: tuple[int, ...] = ()
    run: RunMode = "chain"


def reject(layer: nn.Module) -> str | None:
    if reason := unsupported_reason(layer):
        return reason
    if isinstance(layer, nn.Linear):
        if not any(n % k == 0 for n in (layer.in_features, layer.out_features) for k in range(2, math.isqrt(n) + 1)):
            return f"neither {layer.in_features} inputs nor {layer.out_features} outputs can be split, tensor_train would be svd"
        return None
    if is_pointwise(cast(DenseLayer, layer)):
        return "it mixes channels at one position only, tensor_train would be svd"
    if channels_per_group(cast(DenseLayer, layer)) == (1, 1) and sum(k > 1 for k in kernel_size(cast(DenseLayer, layer))) == 1:
        return "a depthwise kernel along one axis has nothing to split"
    return None


def max_rank(layer: DenseLayer, options: Options) -> tuple[int, ...]:
    return trains.max_ranks(_layout(layer, options).sizes)


def skeleton(layer: DenseLayer, rank: tuple[int, ...], options: Options) -> Factors:
    """Return the layers of a train; ranks higher than their neighbours permit are lowered, a pointwise factor at full rank is left out."""
    layout = _layout(layer, options)
    ranks = trains.feasible_ranks(rank, layout.sizes)
    joints = zip((1, *ranks), layout.sizes, (*ranks, 1), strict=True)
    shapes = [core.shape for core in _layer_cores(layer, [torch.empty(joint, device="meta") for joint in joints])]
    bias = layer.bias is not None
    if options.run == "dense":
        return RematerializedLayer(layer, layout, shapes)
    if isinstance(layer, nn.Linear):
        return TensorTrainLinear(*_linear_modes(layer, options), ranks, bias=bias)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    reaches = iter(_axes_of_factors(layer))
    for k, (inside, size, out) in enumerate(shapes):
        last = bias and k == len(shapes) - 1
        if size == 1:
            layers["expand" if k else "squeeze"] = pointwise_layer(layer, inside, out, bias=last)
        else:
            axes = next(reaches)
            layers[f"axis{axes[0]}"] = spatial_layer(layer, inside, out, axes=axes, bias=last)
    return Factors(layers)


@torch.no_grad()
def fit(layer: DenseLayer, compact: Factors, options: Options, moments: Moments | None) -> None:
    layout = _layout(layer, options)
    ranks = [core.shape[2] for core in _read_trains(layer, compact)[0][:-1]]
    found = [trains.tt_svd(layout.to_tensor(one), ranks=ranks) for one in grouped_kernel(layer)]
    write_cores(compact, [trains.balance_cores(_layer_cores(layer, train)) for train in found])
    copy_bias(compact if isinstance(compact, TensorTrainLinear) else compact[-1], layer)


def reconstruct(compact: Factors) -> Tensor:
    if isinstance(compact, TensorTrainLinear):
        return contract_matrix([core[0] for core in read_cores(compact)], _linear_layout(compact.in_modes, compact.out_modes))
    if not isinstance(compact, RematerializedLayer):
        return chain.reconstruct(compact)
    weight = compact.weight_function()
    if isinstance(compact[0], nn.Linear):
        return contract_matrix([core[0] for core in read_cores(compact)], weight.layout)
    return cast(Tensor, weight(*read_cores(compact)))


def ranks_within_error(layer: DenseLayer, epsilon: float, options: Options) -> tuple[int, ...]:
    """Return the ranks at which the relative error of the weight is at most `epsilon`.

    Each bond is truncated by ε‖W‖/√(d−1). All groups get the largest rank that any of them needs. The factors' dtype adds rounding.

    Raises:
        ConfigError: `epsilon` is outside [0, 1), or the weight is not finite.
    """
    if not 0 <= epsilon < 1:
        raise ConfigError(f"epsilon={epsilon}: a relative error is at least 0 and below 1; give one between")
    if not bool(layer.weight.isfinite().all()):
        raise ConfigError("weights hold NaN or infinity; retrain or repair the checkpoint")
    layout = _layout(layer, options)
    return trains.common_ranks([layout.to_tensor(one) for one in grouped_kernel(layer)], epsilon)


def faster_run_mode(
    layer: DenseLayer,
    rank: tuple[int, ...],
    input_shape: tuple[int, ...],
    *,
    options: Options,
    latency: MeasureLatency | None = None,
    name: str = "layer",
) -> RunMode:
    """Return which run mode of a train has the lower latency, for the option `run`.

    The chain saves multiply-accumulates and adds operators; a dense weight contracted beforehand is as fast as the original layer.

    Args:
        input_shape: Shape of an input without the batch axis.
        latency: Returns the milliseconds of layers on one input of that shape, e.g. on a device; None for medians on this machine.
        name: Name of the layer in messages.

    Raises:
        ConfigError: The rank or the input shape does not fit the layer, or the layer is on the meta device, where nothing takes time.
    """
    _check_rank(layer, rank, options, name)
    if layer.weight.is_meta:
        raise ConfigError(f"{name}: it is on the meta device, where nothing takes time; load its weights first")
    like = copy.deepcopy(layer).eval()
    try:
        like(torch.zeros(1, *input_shape).to(layer.weight))
    except RuntimeError as error:
        raise ConfigError(f"{name}: does not take inputs of shape {input_shape}; give theirs, without the batch axis") from error
    with torch.random.fork_rng(devices=[]):
        chained = skeleton(layer, rank, msgspec.structs.replace(options, run="chain")).to(layer.weight).eval()
    one, other = (latency or _measure_here)([chained, like], input_shape)
    return "chain" if one < other else "dense"


def _check_rank(layer: DenseLayer, rank: tuple[int, ...], options: Options, name: str) -> None:
    limit = max_rank(layer, options)
    if len(rank) != len(limit) or any(not 1 <= r <= m for r, m in zip(rank, limit, strict=True)):
        raise ConfigError(f"{name}: rank {rank} for tensor_train; each must be between 1 and {limit}")


def _measure_here(layers: Sequence[nn.Module], input_shape: tuple[int, ...]) -> Sequence[float]:
    return median_ms(layers, torch.zeros(1, *input_shape).to(next(layers[0].parameters())))


@functools.cache
def balanced_modes(n: int, d: int) -> tuple[int, ...]:
    """Return `d` factors of `n` with the smallest sum, largest first."""
    if d == 1:
        return (n,)
    found = (tuple(sorted((k, *balanced_modes(n // k, d - 1)), reverse=True)) for k in range(1, n + 1) if n % k == 0)
    return min(found, key=lambda modes: (sum(modes), modes))


def _linear_modes(layer: nn.Linear, options: Options) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the modes of the input and output features.

    Raises:
        ConfigError: The modes in the options do not fit the layer.
    """
    given = len(options.in_modes) or len(options.out_modes)
    if (given or options.cores) < 2:
        raise ConfigError(f"cores={given or options.cores}: a train has 2 or more; give more, or take svd")
    d = given or min(options.cores, (layer.in_features * layer.out_features).bit_length())  # further cores would have one value each
    ins = options.in_modes or balanced_modes(layer.in_features, d)
    outs = options.out_modes or balanced_modes(layer.out_features, d)[::-1]
    for name, modes, features in (("in_modes", ins, layer.in_features), ("out_modes", outs, layer.out_features)):
        if min(modes) < 1 or math.prod(modes) != features:
            raise ConfigError(f"{name}={modes}: the product is not {features}, the features of the layer; give factors of that")
    if len(ins) != len(outs):
        raise ConfigError(f"in_modes={ins}, out_modes={outs}: their lengths differ; fill up with 1")
    pairs = [(n, m) for n, m in zip(ins, outs, strict=True) if given or n * m > 1]
    return tuple(n for n, _ in pairs), tuple(m for _, m in pairs)


def _linear_layout(in_modes: tuple[int, ...], out_modes: tuple[int, ...]) -> Layout:
    d = len(in_modes)
    order = tuple(axis for k in range(d) for axis in (k, d + k))
    return Layout((*out_modes, *in_modes), order, tuple(m * n for m, n in zip(out_modes, in_modes, strict=True)))


def _layout(layer: DenseLayer, options: Options) -> Layout:
    if isinstance(layer, nn.Linear):
        return _linear_layout(*_linear_modes(layer, options))
    if options.in_modes or options.out_modes:
        raise ConfigError(
            f"in_modes={options.in_modes}, out_modes={options.out_modes}: a convolution is split along its axes; leave them out"
        )
    out, inside = channels_per_group(layer)
    size = kernel_size(layer)
    return Layout((out, inside, *size), (*range(1, 2 + len(size)), 0), (inside, *(k for k in size if k > 1), out))


def _axes_of_factors(layer: Convolution) -> list[tuple[int, ...]]:
    """Return the axes of each convolution: one on which the kernel is longer than 1, and for the first also all on which it is not."""
    long = [axis for axis, k in enumerate(kernel_size(layer)) if k > 1]
    short = [axis for axis, k in enumerate(kernel_size(layer)) if k == 1]
    return [(long[0], *short), *((axis,) for axis in long[1:])]


def _layer_cores(layer: DenseLayer, train: Sequence[Tensor]) -> list[Tensor]:
    """Return the cores `(in, area, out)` of a convolution's layers from its train; a square core at an end is merged into its neighbour."""
    if isinstance(layer, nn.Linear):
        return list(train)
    first, *cores, last = train  # (1, in, r), …, (s, out, 1)
    if first.shape[1] == first.shape[2]:
        cores[0] = torch.tensordot(first[0], cores[0], 1)
    else:
        cores.insert(0, first.transpose(0, 1))
    if last.shape[0] == last.shape[1]:
        cores[-1] = torch.tensordot(cores[-1], last[..., 0], 1)
    else:
        cores.append(last.transpose(1, 2))
    return cores


def _read_trains(layer: DenseLayer, compact: Factors) -> list[list[Tensor]]:
    """Return the train of each group in `compact`: cores `(r, n, s)` with r = 1 at the start and s = 1 at the end."""
    cores = read_cores(compact)
    if not isinstance(layer, nn.Linear):
        out, inside = channels_per_group(layer)
        groups = len(cores[0])
        start, end = (torch.eye(n, dtype=torch.float64, device=cores[0].device).expand(groups, n, n) for n in (inside, out))
        first = cores.pop(0).transpose(1, 2) if cores[0].shape[2] == 1 else start[:, None]
        last = cores.pop().transpose(2, 3) if cores[-1].shape[2] == 1 else end[..., None]
        cores = [first, *cores, last]
    return [[core[i] for core in cores] for i in range(len(cores[0]))]
