"""What a factorization is: a module that defines the functions of `Factorization`."""

from typing import Protocol, TypeVar

from torch import Tensor, nn

L = TypeVar("L", bound=nn.Module, contravariant=True)


class Factors(nn.Sequential):
    """The ordinary layers that stand in for one layer. A class of its own only so that a decomposed model can be recognised."""


def computed_weight(layer: nn.Module) -> str | None:
    """Why the weight of `layer` cannot be replaced: it is recomputed from other tensors before each call; None if it is its own."""
    if isinstance(layer.weight, nn.Parameter):
        return None
    return "its weight is computed from other parameters (weight norm, pruning), make it an ordinary one first"


class Factorization(Protocol[L]):
    def reject(self, layer: nn.Module) -> str | None:
        """Why this method cannot factorize `layer`; None if it can."""

    def max_rank(self, layer: L) -> tuple[int, ...]:
        """Smallest rank at which the factorization is exact."""

    def skeleton(self, layer: L, rank: tuple[int, ...]) -> Factors:
        """The compact layers, structure only. Costs are counted on it, saved weights load into it."""

    def fit(self, layer: L, compact: Factors) -> None:
        """Fill `compact` so that its composition approximates `layer`. Deterministic."""

    def reconstruct(self, compact: Factors) -> Tensor:
        """The weight, in the shape of the dense layer's, of the one layer that `compact` equals."""
