"""Leases on devices: two processes never measure on one device at the same time, also on different hosts that share the store.

A lease expires unless it is renewed, which a thread does while the lease is held, so a holder that died does not keep a device for ever. A
holder that was stopped for so long that another took the device over learns that at the latest at the end of its block, which then fails.
"""

import logging
import os
import platform
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from platformdirs import user_state_path

from edgecompress.devices.device import Device
from edgecompress.devices.leases.store import LEASES_VARIABLE, LeaseStore, SqlRow
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError, DeviceError

log = logging.getLogger(__name__)

LEASE_TTL_S: Final = 30.0  # a device is free this long after its holder died; a lease is renewed three times as often
HISTORY_KEPT_S: Final = 30 * 86400.0


class DeviceBusy(DeviceError):
    """Another process has the device."""


class LeaseLost(DeviceError):
    """Another process may have used the device while this one thought that it held the lease."""


class Lease:
    """A lease on a device. Use `hold_lease`."""

    def __init__(self, store: LeaseStore, device: str, holder: str, ttl_s: float, renewed: float) -> None:
        self.store, self.device, self.holder, self.ttl_s = store, device, holder, ttl_s
        self.is_lost = False
        self._renewed = renewed

    def renew(self) -> None:
        """Extend the lease by its whole term, measured by the store's clock.

        Raises:
            LeaseLost: The lease expired, or another process has taken the device over.
            ConfigError: The store cannot be reached; the lease may still be good.
        """
        asked = time.monotonic()
        try:
            with self.store.transaction() as execute:
                rows = execute(
                    "UPDATE edgecompress_leases SET expires_at = {now} + :ttl WHERE device = :device AND holder = :holder "
                    "AND expires_at > {now} RETURNING expires_at",
                    device=self.device, holder=self.holder, ttl=self.ttl_s,
                )  # fmt: skip
                for (until,) in rows:
                    execute("UPDATE edgecompress_turns SET ended_at = :until WHERE holder = :holder", holder=self.holder, until=until)
        except ConfigError:
            self.is_lost = asked > self._renewed + self.ttl_s
            raise
        if self.is_lost or not rows:
            self.is_lost = True
            remedy = "its result does not count; run it again"
            raise LeaseLost(f"{self.device}: the lease ran out after {self.ttl_s:g} s without renewal, another may be on it; {remedy}")
        self._renewed = asked

    def release(self) -> None:
        """Give the device back, unless another process has taken it over."""
        with self.store.transaction() as execute:
            execute("DELETE FROM edgecompress_leases WHERE device = :device AND holder = :holder", device=self.device, holder=self.holder)
            execute("UPDATE edgecompress_turns SET ended_at = {now} WHERE holder = :holder AND ended_at > {now}", holder=self.holder)


class _HeldLeases(threading.local):
    """The leases of this thread: a function that holds a device may call another that holds it too."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}


_held = _HeldLeases()


def open_lease_store() -> LeaseStore:
    """Return the store that EDGECOMPRESS_LEASES names (a path, or `postgresql://…`), else the file in the user's state folder.

    Raises:
        ConfigError: The store cannot be used.
    """
    return LeaseStore(os.environ.get(LEASES_VARIABLE) or str(user_state_path("edgecompress") / "leases.sqlite3"))


def lease_name(device: Device) -> str:
    """Return the name of the lease on a device, which is the same in every process that shares the store."""
    return f"{device.url.partition('://')[0]}:{device.serial}"


@contextmanager
def hold_lease(
    device: str, *, wait_s: float, store: LeaseStore | None = None, ttl_s: float = LEASE_TTL_S, on_lost: Callable[[], None] | None = None
) -> Iterator[Lease]:
    """Hold the lease of that name; wait for another process that holds it. In a thread that holds it already this does nothing.

    Args:
        wait_s: How long to wait; 0 tries once.
        ttl_s: The lease expires this long after this process died.
        on_lost: Called in another thread as soon as the lease is known to be lost.

    Raises:
        DeviceBusy: The device is still taken after `wait_s`; names the holder.
        LeaseLost: The lease was lost, so the work of the block does not count.
        ConfigError: The store cannot be used.
    """
    if outer := _held.leases.get(device):
        yield outer
        return
    lease = _acquire(store or open_lease_store(), device, wait_s=wait_s, ttl_s=ttl_s)
    over = threading.Event()
    renewal = threading.Thread(target=_renew_periodically, args=(lease, over, on_lost), name=f"lease on {device}", daemon=True)
    renewal.start()
    _held.leases[device] = lease
    try:
        yield lease
        lease.renew()
    finally:
        del _held.leases[device]
        over.set()
        renewal.join()
        try:
            lease.release()
        except ConfigError as error:  # the first failure is the one to report; the lease expires by itself
            log.warning("%s: not given back, free in %g s: %s", device, ttl_s, error)


def _acquire(store: LeaseStore, device: str, *, wait_s: float, ttl_s: float) -> Lease:
    holder, deadline = secrets.token_hex(16), time.monotonic() + wait_s
    while True:
        asked = time.monotonic()
        other = _try_acquire(store, device, holder, ttl_s)
        if other is None:
            return Lease(store, device, holder, ttl_s, asked)
        left = deadline - time.monotonic()
        if left <= 0:
            host, pid = sanitize(str(other[0]), limit=80), other[1]
            raise DeviceBusy(f"{device}: process {pid} on {host} still has it after {wait_s:g} s; wait for it or stop it")
        time.sleep(min(left, random.uniform(0.05, 0.3)))  # noqa: S311 - processes that wait must not ask in step


def _try_acquire(store: LeaseStore, device: str, holder: str, ttl_s: float) -> SqlRow | None:
    """Take the lease when it is free or has expired and return None; else return its holder as (host, pid)."""
    own = {"device": device, "holder": holder, "host": platform.node() or "localhost", "pid": os.getpid()}
    with store.transaction() as execute:
        rows = execute(
            "INSERT INTO edgecompress_leases (device, holder, host, pid, taken_at, expires_at) "
            "VALUES (:device, :holder, :host, :pid, {now}, {now} + :ttl) ON CONFLICT (device) DO UPDATE SET "
            "holder = :holder, host = :host, pid = :pid, taken_at = {now}, expires_at = {now} + :ttl "
            "WHERE edgecompress_leases.expires_at <= {now} RETURNING taken_at, expires_at",
            ttl=ttl_s, **own,
        )  # fmt: skip
        if not rows:
            return execute("SELECT host, pid FROM edgecompress_leases WHERE device = :device", device=device)[0]
        taken, until = rows[0]
        execute("DELETE FROM edgecompress_turns WHERE ended_at < {now} - :keep", keep=HISTORY_KEPT_S)
        execute(
            "INSERT INTO edgecompress_turns (holder, device, host, pid, taken_at, ended_at) "
            "VALUES (:holder, :device, :host, :pid, :taken, :until)",
            taken=taken, until=until, **own,
        )  # fmt: skip
    return None


def _renew_periodically(lease: Lease, over: threading.Event, on_lost: Callable[[], None] | None) -> None:
    while not over.wait(lease.ttl_s / 3):
        try:
            lease.renew()
        except LeaseLost:
            break
        except ConfigError as error:
            log.warning("%s: its lease was not renewed: %s", lease.device, error)
            if lease.is_lost:
                break
    if lease.is_lost and on_lost is not None and not over.is_set():
        on_lost()
