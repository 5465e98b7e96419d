"""Places that run artifacts: this machine, anything with ssh, Android by adb. A new one is a module and a line in `OPENERS`."""

from collections.abc import Callable
from typing import Final

from edgecompress.devices.base import Completed, Device, clean
from edgecompress.errors import ConfigError, EdgeCompressError
from edgecompress.records import DeviceInfo

__all__ = ["OPENERS", "Completed", "Device", "list_devices", "open_device"]


def _local(rest: str) -> Device:
    from edgecompress.devices.local import open_local

    return open_local(rest)


def _ssh(rest: str) -> Device:
    from edgecompress.devices.ssh import open_ssh

    return open_ssh(rest)


def _adb(rest: str) -> Device:
    from edgecompress.devices.adb import open_adb

    return open_adb(rest)


OPENERS: Final[dict[str, Callable[[str], Device]]] = {"local": _local, "ssh": _ssh, "adb": _adb}


def open_device(url: str) -> Device:
    """Return the device that `url` names, connected: `local://`, `ssh://user@host:port` or `adb://SERIAL`. Close it, or use `with`.

    Raises:
        ConfigError: The URL is malformed or its scheme unknown.
        DeviceError: The device cannot be reached or refuses us.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in OPENERS:
        known = ", ".join(f"{name}://" for name in OPENERS)
        raise ConfigError(f"{clean(url, limit=200)!r}: unknown kind of device; choose from {known}")
    if not rest.isprintable():
        raise ConfigError(f"{clean(url, limit=200)!r}: control characters in a device's name; copy it from `edgecompress devices`")
    return OPENERS[scheme](rest)


def list_devices() -> tuple[DeviceInfo, ...]:
    """Return this machine and everything attached by adb; an unusable one carries `state` and `problem` in place of facts."""
    from edgecompress.devices.adb import attached

    return (_describe("local://"), *(info if info.problem else _describe(info.url) for info in attached()))


def _describe(url: str) -> DeviceInfo:
    try:
        with open_device(url) as device:
            return device.info()
    except EdgeCompressError as error:
        return DeviceInfo(url=url, serial=url.partition("://")[2], state="failed", problem=str(error))
