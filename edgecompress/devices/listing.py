"""What there is to measure on: this machine, what adb sees and what the inventory names, all asked at once."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed

import msgspec

from edgecompress.devices import open_device
from edgecompress.devices.adb import attached
from edgecompress.devices.inventory import Entry, named, same_address
from edgecompress.errors import EdgeCompressError
from edgecompress.progress import Track
from edgecompress.records import DeviceInfo

MIN_FREE_BYTES = 32 << 20  # room for a runner with its libraries and a small artifact


def list_all(entries: Sequence[Entry], *, track: Track) -> tuple[DeviceInfo, ...]:
    """Return this machine, everything attached by adb, then the rest of `entries`; an unusable one says what is wrong and what to do.

    Each connection has its own time limits, and all are made at the same time: the slowest device decides how long it takes.
    """
    known = [DeviceInfo(url="local://", serial=""), *attached()]
    known += [DeviceInfo(url=e.url, serial="") for e in entries if not any(same_address(e.url, info.url) for info in known)]
    found = dict(track(_asked(known), "asking devices", len(known)))
    return tuple(_with_entry(found[i], named(entries, found[i].url)) for i in range(len(known)))


def _asked(known: Sequence[DeviceInfo]) -> Iterator[tuple[int, DeviceInfo]]:
    """Yield each device's place and facts as they come.

    The threads are daemons: an interrupted listing waits only for those that run a program here, so that none is left behind, and not
    for hosts that do not answer.
    """
    futures: dict[Future[DeviceInfo], int] = {Future(): i for i in range(len(known))}
    threads = [threading.Thread(target=_fill, args=(future, known[i]), daemon=True) for future, i in futures.items()]
    for thread in threads:
        thread.start()
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for thread, info in zip(threads, known, strict=True):
            if not info.url.startswith("ssh://"):
                thread.join()


def _fill(future: Future[DeviceInfo], info: DeviceInfo) -> None:
    try:
        future.set_result(info if info.problem else describe(info.url))
    except BaseException as error:  # raised again where the result is asked for
        future.set_exception(error)


def describe(url: str) -> DeviceInfo:
    """Return what the device at `url` says it is, or why it says nothing."""
    try:
        device = open_device(url)
    except EdgeCompressError as error:
        return DeviceInfo(url=url, serial=url.partition("://")[2], state="unreachable", problem=str(error))
    try:
        with device:
            info = device.info()
    except EdgeCompressError as error:
        return DeviceInfo(url=url, serial=device.serial, state="failed", problem=str(error))
    if info.free_bytes is not None and info.free_bytes < MIN_FREE_BYTES:
        free = f"only {info.free_bytes / 1e6:.0f} MB are free in {device.base}"
        return msgspec.structs.replace(info, state="full", problem=f"{url}: {free}; remove files there (`df {device.base}`)")
    return info


def _with_entry(info: DeviceInfo, entry: Entry | None) -> DeviceInfo:
    return info if entry is None else msgspec.structs.replace(info, name=entry.name, labels=entry.labels)
