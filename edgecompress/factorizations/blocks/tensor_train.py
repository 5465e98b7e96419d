"""Tensor trains as layers: a chain of matrix products for a Linear, or one dense layer whose weight is contracted from the cores."""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgecompress.errors import UnsupportedError
from edgecompress.factorizations.blocks.layers import (
    TRANSPOSED,
    DenseLayer,
    channels_per_group,
    grouped_kernel,
    pointwise_layer,
    spatial_layer,
    write_kernel,
)
from edgecompress.factorizations.tensors.tensor_train import contract_cores
from edgecompress.network.factors import Factors

MIN_SLICES: Final = 64  # a matrix is contracted in at least so many slices, so that little else of its size is held


class Layout(NamedTuple):
    """Conversion of one group's kernel `(out, in, *area)` to a tensor: reshape to `fine`, permute by `order`, reshape to `sizes`."""

    fine: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]

    def to_tensor(self, one: Tensor) -> Tensor:
        """Return the tensor of one group's kernel."""
        return one.reshape(self.fine).permute(self.order).reshape(self.sizes)

    def to_kernels(self, tensors: Tensor) -> Tensor:
        """Return the kernels `(groups, *fine)` as a view of the tensors `(groups, …)`."""
        split = tensors.reshape(len(tensors), *(self.fine[axis] for axis in self.order))
        return split.permute(0, *(1 + self.order.index(axis) for axis in range(len(self.order))))


class TensorTrainLinear(Factors):
    """A TT-matrix as a chain of Linears, one per core, with reshapes and permutes of at most four axes between them.

    Each core removes an input mode at the front of the state `(batch, n_{k+1}, later input modes · tokens · earlier output modes, r_k)` and
    adds an output mode at its end, so that after the last core the output modes are in order.
    """

    bias: nn.Parameter | None

    def __init__(self, in_modes: tuple[int, ...], out_modes: tuple[int, ...], ranks: tuple[int, ...], *, bias: bool) -> None:
        widths = zip((1, *ranks), in_modes, out_modes, (*ranks, 1), strict=True)
        super().__init__(*(nn.Linear(r * n, m * s, bias=False) for r, n, m, s in widths))  # (m_k r_k, r_{k-1} n_k)
        self.in_modes, self.out_modes, self.ranks = in_modes, out_modes, ranks
        self.register_parameter("bias", nn.Parameter(torch.zeros(math.prod(out_modes))) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0] if x.ndim > 1 else 1
        tokens, later = math.prod(x.shape[1:-1]), math.prod(self.in_modes[1:])
        state = x.reshape(batch, tokens, self.in_modes[0], later).permute(0, 3, 1, 2)  # (batch, later, tokens, n_1)
        places, r = later * tokens, 1
        for k, (layer, n) in enumerate(zip(self, self.in_modes, strict=True)):
            if k:
                places, r = places // n * self.out_modes[k - 1], self.ranks[k - 1]
                state = state.reshape(batch, n, places, r).permute(0, 2, 3, 1)  # (batch, places, r, n_k)
            state = layer(state.reshape(batch, places, r * n))  # (batch, places, m_k r_k)
        y = state.reshape(*x.shape[:-1], math.prod(self.out_modes))
        return y if self.bias is None else y + self.bias


class TensorTrainWeight(nn.Module):
    """A parametrization: the weight of a dense layer as a function of cores `(groups, r, n, s)`."""

    def __init__(self, layer: DenseLayer, layout: Layout, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.layout, self.shapes = layout, shapes
        self.shape: torch.Size = grouped_kernel(layer).shape
        self.transposed = isinstance(layer, TRANSPOSED)

    def forward(self, *cores: Tensor) -> Tensor:
        kernels = self.layout.to_kernels(contract_cores(cores)).reshape(self.shape)
        return (kernels.transpose(1, 2) if self.transposed else kernels).flatten(0, 1)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return zero cores, which a fit or a file fills."""
        if not weight.is_meta:
            raise UnsupportedError("weight: it is contracted from a tensor train; factorize the dense layer again")
        return tuple(torch.zeros(self.shape[0], *shape) for shape in self.shapes)


class RematerializedLayer(Factors):
    """A layer like `layer`, which may be on the meta device, that stores cores and contracts them to its weight in each forward pass."""

    def __init__(self, layer: DenseLayer, layout: Layout, shapes: Sequence[tuple[int, ...]]) -> None:
        out, inside = channels_per_group(layer)
        bias = layer.bias is not None
        with torch.device("meta"):  # avoids allocating the dense weight
            like = (
                pointwise_layer(layer, inside, out, bias=bias)
                if isinstance(layer, nn.Linear)
                else spatial_layer(layer, inside, out, bias=bias)
            )
        super().__init__(copy.deepcopy(like))
        self.geometry = like, layout, shapes
        if isinstance(like.bias, Tensor):
            self[0].bias = nn.Parameter(torch.zeros(like.bias.shape))
        parametrize.register_parametrization(self[0], "weight", TensorTrainWeight(cast(DenseLayer, like), layout, shapes), unsafe=True)

    def weight_function(self) -> TensorTrainWeight:
        """Return the function that contracts the cores to the weight."""
        return cast(TensorTrainWeight, self._parametrization()[0])

    def core_parameters(self) -> list[nn.Parameter]:
        """Return the cores, `(groups, r, n, s)`."""
        return list(self._parametrization().parameters())

    def _parametrization(self) -> parametrize.ParametrizationList:
        return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, self[0].parametrizations)["weight"])

    def __deepcopy__(self, memo: dict[int, Any]) -> "RematerializedLayer":
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the parametrized layer, which torch cannot pickle."""
        return _rebuild_layer, (*self.geometry, self.state_dict(), self.training)


def _rebuild_layer(
    layer: DenseLayer, layout: Layout, shapes: Sequence[tuple[int, ...]], state: dict[str, Tensor], training: bool
) -> RematerializedLayer:
    made = RematerializedLayer(layer, layout, shapes)
    made.load_state_dict(state, assign=True)
    return made.train(training)


@torch.no_grad()
def write_cores(compact: Factors, trains: Sequence[Sequence[Tensor]]) -> None:
    """Write one train per group, cores `(r, n, s)`, into the layers."""
    cores = [torch.stack(group) for group in zip(*trains, strict=True)]  # (groups, r, n, s)
    if isinstance(compact, RematerializedLayer):
        for parameter, core in zip(compact.core_parameters(), cores, strict=True):
            parameter.copy_(core)
    elif isinstance(compact, TensorTrainLinear):
        for layer, core, m in zip(compact, cores, compact.out_modes, strict=True):
            split = torch.unflatten(core[0], 1, (m, -1))  # (r, m, n, s)
            write_kernel(layer, split.permute(1, 3, 0, 2))
    else:
        for layer, core in zip(compact, cores, strict=True):
            write_kernel(layer, core.permute(0, 3, 1, 2))  # (groups, out, in, area)


@torch.no_grad()
def read_cores(compact: Factors) -> list[Tensor]:
    """Return the cores of the layers, `(groups, r, n, s)`, float64."""
    cores: Sequence[Tensor]
    if isinstance(compact, RematerializedLayer):
        cores = compact.core_parameters()
    elif isinstance(compact, TensorTrainLinear):
        cores = [
            grouped_kernel(cast(DenseLayer, layer)).reshape(m, s, -1, n).permute(2, 0, 3, 1).flatten(1, 2)[None]
            for layer, n, m, s in zip(compact, compact.in_modes, compact.out_modes, (*compact.ranks, 1), strict=True)
        ]
    else:
        cores = [grouped_kernel(cast(DenseLayer, layer)).flatten(3).permute(0, 2, 3, 1) for layer in compact]
    return [core.detach().double() for core in cores]


def contract_matrix(cores: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return the `(out, in)` matrix of a TT-matrix, contracted slice by slice, so that nothing else of its size is held."""
    d = len(cores)
    parted = next((k for k in range(1, d - 1) if math.prod(layout.sizes[:k]) >= MIN_SLICES), d - 1)
    made = cores[0].new_empty(layout.fine)
    view = made.permute(layout.order)  # (m_1, n_1, m_2, n_2, …)
    rows = contract_cores(cores[:parted]).reshape(-1, cores[parted].shape[0])
    for row, index in zip(rows, itertools.product(*map(range, view.shape[: 2 * parted])), strict=True):
        view[index] = contract_cores([row[None, None], *cores[parted:]]).reshape(view.shape[2 * parted :])
    return made.reshape(math.prod(layout.fine[:d]), -1)
