"""The container of the low-rank layers that replace one dense layer."""

from torch import nn


class Factors(nn.Sequential):
    """Ordinary layers that together replace one dense layer; the class marks a network as decomposed.

    Attributes:
        rank: The rank, set by methods whose layers do not show it in their shapes.
    """

    rank: tuple[int, ...] = ()
