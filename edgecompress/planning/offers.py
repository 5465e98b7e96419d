"""Candidates as allocators see them: what each costs, and how bad it is by each allocator's measure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from edgecompress.factorizations import METHODS, options_of
from edgecompress.factorizations.ranks import evbmf
from edgecompress.planning.allocators import Offer
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.sensitivity import Losses


def offers(
    model: nn.Module,
    candidates: Mapping[str, Sequence[Candidate]],
    losses: Losses,
    *,
    weakened: bool = False,
    present: Mapping[str, Candidate] = MappingProxyType({}),
    rounding: Mapping[str, float] = MappingProxyType({}),
) -> list[list[Offer]]:
    """Return the offers of every layer, in the order of the candidates; a cost is MACs.

    Args:
        weakened: Whether ranks are to be held against those that EVBMF estimates, which takes time.
        rounding: Layer → what computing it in the network's scheme adds to the loss.
        present: Layer → the form it has already, whose rank takes the place of the full one.

    Raises:
        UnsupportedError: Weakening, and a method whose ranks EVBMF cannot estimate.
    """
    return [
        [
            Offer(
                cost=c.macs,
                loss=losses[name, c.method, c.rank] + (0.0 if c.scheme else rounding.get(name, 0.0)),
                error=c.relative_error,
                spectral_error=c.spectral_error,
                weakening=_weakening(name, model.get_submodule(name), c, present.get(name)) if weakened else 0.0,
            )
            for c in found
        ]
        for name, found in candidates.items()
    ]


def _weakening(name: str, layer: nn.Module, candidate: Candidate, now: Candidate | None) -> float:
    """Return how far below its largest rank a candidate is, that being 0 and EVBMF's 1, of the number of its rank that is furthest."""
    if candidate.method == DENSE:
        return 0.0
    limit = now.rank if now else METHODS[candidate.method].max_rank(layer, options_of(candidate.method, candidate.options))
    noiseless = evbmf(layer, candidate.method, name=name, options=candidate.options)
    return max((m - r) / max(1, m - v) for m, r, v in zip(limit, candidate.rank, noiseless, strict=True))
