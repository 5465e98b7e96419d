"""Machines that run artifacts: this one, any with ssh, and Android by adb. A transport is one module and one line in `OPENERS`."""

import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from edgecompress.devices.device import CompletedCommand, Device
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError
from edgecompress.progress import Track, track_silently
from edgecompress.records import DeviceInfo

if TYPE_CHECKING:
    from edgecompress.devices.inventory import InventoryEntry

__all__ = ["OPENERS", "CompletedCommand", "Device", "list_devices", "open_device"]

# URL scheme → the function that opens what follows `://`. It is imported when it is used, since asyncssh is slow to import and optional.
OPENERS: Final = {
    "local": "edgecompress.devices.transports.local:open_local",
    "ssh": "edgecompress.devices.transports.ssh:open_ssh",
    "adb": "edgecompress.devices.transports.adb:open_adb",
}


def open_device(url: str) -> Device:
    """Return the device that `url` names, connected: `local://`, `ssh://user@host:port` or `adb://SERIAL`. Close it, or use `with`.

    A name of the inventory stands for its URL and its interpreter.

    Raises:
        ConfigError: The URL is malformed, its scheme unknown, or the inventory has no such name.
        DeviceError: The device cannot be reached or refuses us.
    """
    scheme, separator, rest = url.partition("://")
    if url and not separator:
        return _open_by_name(url)
    if scheme not in OPENERS:
        raise ConfigError(f"{sanitize(url, limit=200)!r}: unknown kind of device; choose from {known_schemes()}")
    if not rest.isprintable():
        raise ConfigError(f"{sanitize(url, limit=200)!r}: control characters in a device's name; copy it from `edgecompress devices`")
    opener: Callable[[str], Device] = pkgutil.resolve_name(OPENERS[scheme])
    return opener(rest)


def list_devices(entries: "Sequence[InventoryEntry]" = (), *, track: Track = track_silently) -> tuple[DeviceInfo, ...]:
    """Return this machine, every device attached by adb, and the inventory's `entries` (`inventory.load_inventory()`).

    A device that cannot be used has a `state` other than "ready" and says in `problem` what is wrong and what to do.
    """
    from edgecompress.devices.listing import list_all_devices

    return list_all_devices(entries, track=track)


def _open_by_name(name: str) -> Device:
    from edgecompress.devices.inventory import resolve_device

    entry = resolve_device(name)
    device = open_device(entry.url)
    device.python = entry.python or device.python
    return device


def known_schemes() -> str:
    """Return the URL schemes of devices as a message lists them."""
    return ", ".join(f"{scheme}://" for scheme in OPENERS)
