"""The interface of an allocator: a module that defines the function of `Allocator`."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Offer(NamedTuple):
    """One candidate of a layer, as allocators see it; for the dense layer everything except the cost is 0.

    Attributes:
        cost: Cost in the unit of the budget: MACs, parameters, bytes or milliseconds.
        loss: Increase of the network's loss; the losses of all layers add up.
        error: ‖W − Ŵ‖_F / ‖W‖_F.
        spectral_error: ‖W − Ŵ‖₂ / ‖W‖₂ of the matrix (out, all other axes).
        weakening: Distance of the rank below the full rank, in units of the distance of the rank that EVBMF estimates.
    """

    cost: float
    loss: float = 0.0
    error: float = 0.0
    spectral_error: float = 0.0
    weakening: float = 0.0


class Allocator(Protocol):
    """Divides a budget among layers by choosing one offer of each."""

    def allocate(self, offers: Sequence[Sequence[Offer]], budget: float) -> list[int] | None:
        """Return the index of the chosen offer of each layer, total cost within `budget`; None if even the cheapest offers exceed it."""
