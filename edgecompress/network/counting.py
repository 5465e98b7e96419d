"""Count the parameters and multiply-accumulates (MACs) of layers while a network runs, dense and factorized layers alike.

Products of activations with each other, like the two of an attention between its projections, belong to no layer and are not counted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgecompress.network.layer_kinds import TRANSPOSED_MODULES, WEIGHTED_MODULES


@dataclass
class LayerCosts:
    """Cost of one layer in a forward pass for one sample; the shapes are those of its last call, without axis 0."""

    calls: int = 0
    macs: int = 0
    activation_bytes: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = field(default=())


def macs_of(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the MACs of one call: each weight is used once per position of the output, or of the input in transposed convolutions.

    Positions are all axes but the channels: samples too, on whichever axis they lie, and e.g. windows that a network folds into them.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        return weight.numel() * math.prod(y.shape[:-1])
    shape = (x if isinstance(layer, TRANSPOSED_MODULES) else y).shape
    channels = len(shape) - len(layer.kernel_size) - 1  # type: ignore[arg-type]  # the axis
    return weight.numel() * math.prod(shape) // shape[channels]


@contextmanager
def record_layer_costs(model: nn.Module, samples: int = 1) -> Iterator[dict[str, LayerCosts]]:
    """Record the cost of each weighted layer per sample, while the `with` block runs the model on a batch of `samples`."""
    seen: dict[str, LayerCosts] = {}

    def make_hook(name: str) -> object:
        def record_call(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            one = seen.setdefault(name, LayerCosts())
            one.calls += 1
            one.macs += macs_of(layer, x, y) // samples
            one.activation_bytes += 4 * (x.numel() + y.numel()) // samples
            one.input_shape, one.output_shape = tuple(x.shape[1:]), tuple(y.shape[1:])

        return record_call

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, WEIGHTED_MODULES)]
    handles = [m.register_forward_hook(make_hook(n), with_kwargs=True) for n, m in layers]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def params_of(module: nn.Module) -> int:
    """Return the number of parameters of a module; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def cost_of(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (params, macs) of a module on the meta device for one input of `input_shape`, without its batch axis."""
    with record_layer_costs(module) as seen:
        module(torch.empty(1, *input_shape, device="meta"))
    return params_of(module), sum(one.macs for one in seen.values())
