"""What a factorization is: a module that defines the functions of `Factorization`."""

from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

from msgspec import Meta
from torch import Tensor, nn

from edgecompress.network.factors import Factors
from edgecompress.records import Record

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]

L = TypeVar("L", bound=nn.Module, contravariant=True)


class NoOptions(Record, frozen=True, kw_only=True):
    """For a method that leaves nothing to choose but its rank."""


class Moments(NamedTuple):
    """First and second moments of what one layer reads: `x` is a row of its im2col matrix, in the order of the flattened kernel.

    Attributes:
        second: E[x xᵀ], shape `(groups, n, n)` with `n = in/groups · kernel area`, float64.
        mean: E[x], shape `(groups, n)`, float64.
    """

    second: Tensor
    mean: Tensor


class Factorization(Protocol[L]):
    @property
    def Options(self) -> type[Record]:
        """What may be set beside the rank, with its defaults."""

    @property
    def DATA_AWARE(self) -> bool:
        """Whether `fit` can minimise the error of the layer's output, given the moments of its input."""

    def reject(self, layer: nn.Module) -> str | None:
        """Why this method cannot factorize `layer`; None if it can."""

    def max_rank(self, layer: L, options: Any) -> tuple[int, ...]:
        """Smallest rank at which the factorization is exact for any weight."""

    def skeleton(self, layer: L, rank: tuple[int, ...], options: Any) -> Factors:
        """The compact layers, structure only. Costs are counted on it, saved weights load into it."""

    def fit(self, layer: L, compact: Factors, options: Any, moments: Moments | None) -> str | None:
        """Fill `compact` so that its composition approximates `layer`. Deterministic. Return what went less than well, if anything."""

    def reconstruct(self, compact: Factors) -> Tensor:
        """The weight, in the shape of the dense layer's, float64, of the one layer that `compact` equals."""
