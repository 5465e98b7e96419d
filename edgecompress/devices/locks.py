"""Turns on a device: two processes of this user never measure on one device at the same time."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from edgecompress.errors import DeviceError
from edgecompress.files import explain


@contextmanager
def turn(serial: str, *, wait_s: float) -> Iterator[None]:
    """Hold the device with that serial; wait for another process that holds it.

    Raises:
        DeviceError: It is still taken after `wait_s`.
    """
    folder = user_cache_path("edgecompress") / "devices"
    path = folder / f"{hashlib.sha256(serial.encode()).hexdigest()[:16]}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=wait_s)
        lock.acquire()
    except Timeout as error:
        raise DeviceError(f"{serial}: another process has been measuring on it for {wait_s:g} s; wait for it or stop it") from error
    except OSError as error:
        raise explain(error, path) from error
    try:
        yield
    finally:
        lock.release()
