"""List the devices that can be used: this machine, the ones attached by adb and those of the inventory, all asked at the same time."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import Final

import msgspec

from edgecompress.devices import open_device
from edgecompress.devices.device import Device
from edgecompress.devices.inventory import InventoryEntry, find_entry, is_same_address
from edgecompress.devices.probe import PROBE_TIMEOUT_S
from edgecompress.devices.transports.adb import list_attached
from edgecompress.errors import EdgeCompressError
from edgecompress.progress import Track
from edgecompress.records import DeviceInfo

MIN_FREE_BYTES: Final = 32 << 20  # a runner with its libraries and a small artifact need this much
CHECK_SCRIPT: Final = 'command -v "$1" >/dev/null || echo no-python; [ -w "$2" ] || echo read-only'


def list_all_devices(entries: Sequence[InventoryEntry], *, track: Track) -> tuple[DeviceInfo, ...]:
    """Return this machine, every device attached by adb, then the rest of `entries`; an unusable one says what is wrong and what to do.

    Each connection has its own time limits, and all are made at the same time, so the slowest device decides how long the listing takes.
    """
    known = [DeviceInfo(url="local://", serial=""), *list_attached()]
    known += [DeviceInfo(url=e.url, serial="") for e in entries if not any(is_same_address(e.url, info.url) for info in known)]
    matches = [find_entry(entries, info.url) for info in known]
    found = dict(track(_describe_concurrently(known, matches), "asking devices", len(known)))
    return tuple(_add_inventory_names(found[i], entry) for i, entry in enumerate(matches))


def _describe_concurrently(known: Sequence[DeviceInfo], entries: Sequence[InventoryEntry | None]) -> Iterator[tuple[int, DeviceInfo]]:
    """Yield (index, facts) of each device as soon as its facts arrive.

    The threads are daemons: an interrupted listing waits only for those that run a program on this machine, so that none is left behind,
    and not for hosts that do not answer.
    """
    futures: dict[Future[DeviceInfo], int] = {Future(): i for i in range(len(known))}
    threads = [threading.Thread(target=_describe_into, args=(future, known[i], entries[i]), daemon=True) for future, i in futures.items()]
    for thread in threads:
        thread.start()
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for thread, info in zip(threads, known, strict=True):
            if not info.url.startswith("ssh://"):
                thread.join()


def _describe_into(future: Future[DeviceInfo], info: DeviceInfo, entry: InventoryEntry | None) -> None:
    try:
        future.set_result(info if info.problem else describe_device(info.url, entry))
    except BaseException as error:  # raised again where the result is asked for
        future.set_exception(error)


def describe_device(url: str, entry: InventoryEntry | None = None) -> DeviceInfo:
    """Return the facts of the device at `url`, or what is wrong with it; `entry` may name its interpreter or runner."""
    try:
        device = open_device(url)
    except EdgeCompressError as error:
        return DeviceInfo(url=url, serial=url.partition("://")[2], state="unreachable", problem=str(error))
    try:
        with device:
            info = device.info()
            state, problem = _find_problem(device, info.free_bytes, entry or InventoryEntry(url=url))
    except EdgeCompressError as error:
        return DeviceInfo(url=url, serial=device.serial, state="failed", problem=str(error))
    return msgspec.structs.replace(info, state=state, problem=f"{url}: {problem}" if problem else "")


def _find_problem(device: Device, free_bytes: int | None, entry: InventoryEntry) -> tuple[str, str]:
    """Return the state of a device that answers, and the problem that prevents measurements on it."""
    python, base = entry.python or device.python, str(device.base)
    said = device.run(["sh", "-c", CHECK_SCRIPT, "sh", python, base], timeout_s=PROBE_TIMEOUT_S).stdout.split()
    if "read-only" in said:
        return "read-only", f"{base} cannot be written; log in as a user who may, or mount it writable"
    if free_bytes is not None and free_bytes < MIN_FREE_BYTES:
        return "full", f"only {free_bytes / 1e6:.0f} MB are free in {base}; remove files there (`df {base}`)"
    # Android comes without Python, and is measured by a runner.
    if "no-python" in said and not entry.runner and (entry.python or not device.url.startswith("adb://")):
        return "no python", f"{python} is not there; install it, or name python or a runner in the inventory"
    return "ready", ""


def _add_inventory_names(info: DeviceInfo, entry: InventoryEntry | None) -> DeviceInfo:
    return info if entry is None else msgspec.structs.replace(info, name=entry.name, labels=entry.labels)
