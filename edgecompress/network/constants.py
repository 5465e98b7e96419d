"""Read and replace the constants of an exported graph: parameters and buffers by their qualified names."""

from typing import cast

from torch import Tensor, fx, nn


def get_constant(graph: fx.GraphModule, target: str) -> Tensor:
    """Return the parameter or buffer of that qualified name."""
    owner, _, leaf = target.rpartition(".")
    return cast("Tensor", getattr(graph.get_submodule(owner), leaf))


def set_constant(graph: fx.GraphModule, target: str, value: Tensor) -> None:
    """Replace the parameter or buffer of that qualified name by `value`."""
    owner, _, leaf = target.rpartition(".")
    module = graph.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False) if leaf in module._parameters else value)
