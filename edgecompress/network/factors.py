"""The container of the low-rank layers that replace one dense layer."""

import math
from typing import Any, Final

from torch import nn

PLAIN_TYPES: Final = (bool, int, float, str, tuple, list, type(None))


class Factors(nn.Sequential):
    """Ordinary layers that together replace one dense layer; the class marks a network as decomposed.

    Once it has adopted the dense layer's attributes, it answers what else a network asks that layer: its sizes, its bias, and the shape,
    dtype and device of its weight. The values of that weight exist nowhere, so it is all NaN.

    Attributes:
        rank: The rank, set by methods whose layers do not show it in their shapes.
        dense_shape: Shape of the dense layer's weight.
    """

    rank: tuple[int, ...] = ()
    dense_shape: tuple[int, ...] = ()

    def adopt_attributes(self, dense: nn.Module) -> None:
        """Copy the plain attributes of a dense layer, such as `in_features`, those that its owner gave it, and its weight's shape."""
        self.dense_shape = tuple(dense.weight.shape)  # type: ignore[arg-type]
        for name, value in vars(dense).items():
            if isinstance(value, PLAIN_TYPES) and not name.startswith("_") and name != "training" and not hasattr(self, name):
                setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.dense_shape:
            return next(self.parameters()).detach().new_full((1,), math.nan).expand(self.dense_shape)
        if name == "bias" and self.dense_shape and "bias" not in self._parameters:
            return getattr(list(self.children())[-1], name)
        return super().__getattr__(name)
