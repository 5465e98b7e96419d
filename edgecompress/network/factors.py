"""The low-rank layers that stand in for one dense layer."""

from torch import nn


class Factors(nn.Sequential):
    """The ordinary layers that stand in for one layer. A class of its own only so that a decomposed model can be recognised.

    Attributes:
        rank: Set by methods whose layers do not show it.
    """

    rank: tuple[int, ...] = ()
