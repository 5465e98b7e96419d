"""Places that run artifacts: this machine, anything with ssh, Android by adb. A new one is a module and a line in `OPENERS`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from edgecompress.devices.base import Completed, Device, clean
from edgecompress.errors import ConfigError
from edgecompress.progress import Track, silent
from edgecompress.records import DeviceInfo

if TYPE_CHECKING:
    from edgecompress.devices.inventory import Entry

__all__ = ["OPENERS", "Completed", "Device", "list_devices", "open_device"]


def _local(rest: str) -> Device:
    from edgecompress.devices.transports.local import open_local

    return open_local(rest)


def _ssh(rest: str) -> Device:
    from edgecompress.devices.transports.ssh import open_ssh

    return open_ssh(rest)


def _adb(rest: str) -> Device:
    from edgecompress.devices.transports.adb import open_adb

    return open_adb(rest)


OPENERS: Final[dict[str, Callable[[str], Device]]] = {"local": _local, "ssh": _ssh, "adb": _adb}


def open_device(url: str) -> Device:
    """Return the device that `url` names, connected: `local://`, `ssh://user@host:port` or `adb://SERIAL`. Close it, or use `with`.

    A name of the inventory stands for its URL and its interpreter.

    Raises:
        ConfigError: The URL is malformed, its scheme unknown, or the inventory has no such name.
        DeviceError: The device cannot be reached or refuses us.
    """
    scheme, separator, rest = url.partition("://")
    if url and not separator:
        return _from_inventory(url)
    if scheme not in OPENERS:
        raise ConfigError(f"{clean(url, limit=200)!r}: unknown kind of device; choose from {_kinds()}")
    if not rest.isprintable():
        raise ConfigError(f"{clean(url, limit=200)!r}: control characters in a device's name; copy it from `edgecompress devices`")
    return OPENERS[scheme](rest)


def list_devices(entries: "Sequence[Entry]" = (), *, track: Track = silent) -> tuple[DeviceInfo, ...]:
    """Return this machine, everything attached by adb, and what the inventory's `entries` name (`inventory.load()`).

    One that cannot be used has a `state` other than "ready" and says in `problem` what is wrong and what to do.
    """
    from edgecompress.devices.listing import list_all

    return list_all(entries, track=track)


def _from_inventory(name: str) -> Device:
    from edgecompress.devices.inventory import settings

    entry = settings(name)
    device = open_device(entry.url)
    device.python = entry.python or device.python
    return device


def _kinds() -> str:
    return ", ".join(f"{name}://" for name in OPENERS)
