"""Parameters and multiply-accumulates of layers, counted while a model runs: one formula for dense and factorized layers alike.

Products of activations with each other, as the two of an attention between its projections, are no layer's and are not counted.
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
    """What one layer did in a forward pass for one sample; shapes are of its last call, without axis 0."""

    calls: int = 0
    macs: int = 0
    activation_bytes: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = field(default=())


def macs_of(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """MACs of one call: each weight is used once a position, output positions for all but transposed convolutions.

    Positions are all that is no channel: the samples too, on whichever axis they lie, and what a model folds into theirs, e.g. windows.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        return weight.numel() * math.prod(y.shape[:-1])
    shape = (x if isinstance(layer, TRANSPOSED_MODULES) else y).shape
    channels = len(shape) - len(layer.kernel_size) - 1  # type: ignore[arg-type]  # the axis
    return weight.numel() * math.prod(shape) // shape[channels]


@contextmanager
def record_layer_costs(model: nn.Module, samples: int = 1) -> Iterator[dict[str, LayerCosts]]:
    """Record what each counted layer of `model` does for one sample while the block runs it on a batch of `samples`."""
    seen: dict[str, LayerCosts] = {}

    def watch(name: str) -> object:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            one = seen.setdefault(name, LayerCosts())
            one.calls += 1
            one.macs += macs_of(layer, x, y) // samples
            one.activation_bytes += 4 * (x.numel() + y.numel()) // samples
            one.input_shape, one.output_shape = tuple(x.shape[1:]), tuple(y.shape[1:])

        return hook

    counted = [(n, m) for n, m in model.named_modules() if isinstance(m, WEIGHTED_MODULES)]
    handles = [m.register_forward_hook(watch(n), with_kwargs=True) for n, m in counted]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def params_of(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def cost_of(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (params, macs) of a module on the meta device for one input of `input_shape`, without its batch axis."""
    with record_layer_costs(module) as seen:
        module(torch.empty(1, *input_shape, device="meta"))
    return params_of(module), sum(one.macs for one in seen.values())
