"""Repeat work once after a lost link. Work that crashed or ran out of time is not repeated: it would most likely fail again."""

import logging
from collections.abc import Callable
from typing import TypeVar

from edgecompress.devices.device import Device, LinkLost
from edgecompress.errors import EdgeCompressError
from edgecompress.records import DeviceInfo

log = logging.getLogger(__name__)
T = TypeVar("T")


def retry_once(device: Device, work: Callable[[], T]) -> T:
    """Return the result of `work`, called again over a new connection when the first one breaks.

    Raises:
        DeviceError: Any other failure, the second loss of the link, or the first when the device does not come back.
    """
    try:
        return work()
    except LinkLost as lost:
        log.warning("%s; trying once more", lost)
        try:
            device.reconnect()
        except EdgeCompressError as gone:
            raise lost from gone
    return work()


def probe_if_reachable(device: Device) -> DeviceInfo:
    """Return the current facts of a device, only its names where it cannot be reached, so that a finished run is not lost with it."""
    try:
        return retry_once(device, device.info)
    except EdgeCompressError as error:
        log.warning("%s", error)
        return DeviceInfo(url=device.url, serial=device.serial)
