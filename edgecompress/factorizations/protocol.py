"""The interface of a factorization method: a module that defines the functions of `Factorization`."""

from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

from msgspec import Meta
from torch import Tensor, nn

from edgecompress.network.factors import Factors
from edgecompress.records import Record

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]

L = TypeVar("L", bound=nn.Module, contravariant=True)


class NoOptions(Record, frozen=True, kw_only=True):
    """Options of a method that has none beside its rank."""


class Moments(NamedTuple):
    """First and second moments of one layer's input, where `x` is a row of its im2col matrix, in the order of the flattened kernel.

    Attributes:
        second: E[x xᵀ], shape `(groups, n, n)` with `n = in/groups · kernel area`, float64.
        mean: E[x], shape `(groups, n)`, float64.
    """

    second: Tensor
    mean: Tensor


class Factorization(Protocol[L]):
    """Replaces one layer by several smaller ones."""

    @property
    def Options(self) -> type[Record]:
        """The settings of the method beside the rank, with defaults."""

    @property
    def DATA_AWARE(self) -> bool:
        """Whether `fit` can minimise the error of the layer's output, given the moments of its input."""

    def reject(self, layer: nn.Module) -> str | None:
        """Return why this method cannot factorize `layer`, None if it can."""

    def max_rank(self, layer: L, options: Any) -> tuple[int, ...]:
        """Return the smallest rank at which the factorization is exact for any weight."""

    def skeleton(self, layer: L, rank: tuple[int, ...], options: Any) -> Factors:
        """Return the smaller layers without fitted weights. Costs are counted on them, and saved weights load into them."""

    def fit(self, layer: L, compact: Factors, options: Any, moments: Moments | None) -> str | None:
        """Fill `compact`, deterministically, so that it approximates `layer`; return how the fit fell short, None if it did not."""

    def reconstruct(self, compact: Factors) -> Tensor:
        """Return the weight of the dense layer equal to `compact`, in that layer's shape, float64."""
