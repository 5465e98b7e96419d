"""Who gets how much of a budget. An allocator is a module with the function of `Allocator`; it stands in `ALLOCATORS` under its name."""

from typing import Final

from edgecompress.errors import ConfigError
from edgecompress.planning.allocators import energy, latency, minmax, uniform, vbmf
from edgecompress.planning.allocators.protocol import Allocator, Offer

ALLOCATORS: Final[dict[str, Allocator]] = {"latency": latency, "minmax": minmax, "energy": energy, "vbmf": vbmf, "uniform": uniform}

__all__ = ["ALLOCATORS", "Allocator", "Offer", "allocator_named"]


def allocator_named(name: str) -> Allocator:
    """Return an allocator.

    Raises:
        ConfigError: There is none of this name; lists the known.
    """
    if name not in ALLOCATORS:
        raise ConfigError(f"unknown allocator {name!r}; choose from {', '.join(ALLOCATORS)}")
    return ALLOCATORS[name]
