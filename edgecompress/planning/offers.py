"""Convert candidates to the offers that allocators choose from: a cost, and the harm by each allocator's measure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from edgecompress.factorizations import METHODS, parse_options
from edgecompress.factorizations.ranks import rank_by_evbmf
from edgecompress.planning.allocators import Offer
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.sensitivity import Losses


def make_offers(
    model: nn.Module,
    candidates: Mapping[str, Sequence[Candidate]],
    losses: Losses,
    *,
    weakening: bool = False,
    current: Mapping[str, Candidate] = MappingProxyType({}),
    int8_losses: Mapping[str, float] = MappingProxyType({}),
) -> list[list[Offer]]:
    """Return the offers of every layer, in the order of the candidates; their costs are MACs.

    Args:
        weakening: Whether to compare ranks with those that EVBMF estimates, which takes time.
        current: Layer → its present form, for layers that are factorized already; its rank then counts as the full one.
        int8_losses: Layer → loss increase of computing it in the network's scheme.

    Raises:
        UnsupportedError: Weakening is asked for, and EVBMF cannot estimate the ranks of a method.
    """
    return [
        [
            Offer(
                cost=c.macs,
                loss=losses[name, c.method, c.rank] + (0.0 if c.scheme else int8_losses.get(name, 0.0)),
                error=c.relative_error,
                spectral_error=c.spectral_error,
                weakening=_rank_weakening(name, model.get_submodule(name), c, current.get(name)) if weakening else 0.0,
            )
            for c in found
        ]
        for name, found in candidates.items()
    ]


def _rank_weakening(name: str, layer: nn.Module, candidate: Candidate, now: Candidate | None) -> float:
    """Return how far a candidate's rank lies between the full rank, 0, and EVBMF's, 1; of several numbers, the one furthest down counts."""
    if candidate.method == DENSE:
        return 0.0
    limit = now.rank if now else METHODS[candidate.method].max_rank(layer, parse_options(candidate.method, candidate.options))
    noiseless = rank_by_evbmf(layer, candidate.method, name=name, options=candidate.options)
    return max((m - r) / max(1, m - v) for m, r, v in zip(limit, candidate.rank, noiseless, strict=True))
