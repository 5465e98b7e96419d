"""Allocators divide a budget among layers. Each is a module with the function of `Allocator`, listed in `ALLOCATORS` under its name."""

from typing import Final

from edgecompress.errors import ConfigError
from edgecompress.planning.allocators import energy, latency, minmax, uniform, vbmf
from edgecompress.planning.allocators.protocol import Allocator, Offer

ALLOCATORS: Final[dict[str, Allocator]] = {"latency": latency, "minmax": minmax, "energy": energy, "vbmf": vbmf, "uniform": uniform}

__all__ = ["ALLOCATORS", "Allocator", "Offer", "get_allocator"]


def get_allocator(name: str) -> Allocator:
    """Return the allocator of this name.

    Raises:
        ConfigError: No allocator has this name; the message lists those that exist.
    """
    if name not in ALLOCATORS:
        raise ConfigError(f"unknown allocator {name!r}; choose from {', '.join(ALLOCATORS)}")
    return ALLOCATORS[name]
