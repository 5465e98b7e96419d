"""What an allocator is: a module that defines the function of `Allocator`."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Offer(NamedTuple):
    """One candidate of a layer, as allocators see it. Of the dense layer all but the cost are 0.

    Attributes:
        cost: In the unit of the budget: MACs, parameters, bytes or milliseconds.
        loss: What it adds to the network's loss; losses of layers are added up.
        error: ‖W − Ŵ‖_F / ‖W‖_F.
        spectral_error: ‖W − Ŵ‖₂ / ‖W‖₂ of the matrix (out, all else).
        weakening: How far its rank lies below the largest one, in units of the distance to the rank that EVBMF estimates.
    """

    cost: float
    loss: float = 0.0
    error: float = 0.0
    spectral_error: float = 0.0
    weakening: float = 0.0


class Allocator(Protocol):
    def allocate(self, offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
        """Return the index of the chosen offer of each layer, total cost within `budget`; None when the cheapest together exceed it."""
