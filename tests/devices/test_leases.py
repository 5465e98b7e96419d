"""Leases between real processes, kept in a real SQLite file and a real PostgreSQL server."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from support.leases import find_overlaps, read_turns

from edgecompress.devices.leases import store as lease_store
from edgecompress.devices.leases.lease import DeviceBusy, LeaseLost, hold_lease, lease_name, open_lease_store
from edgecompress.devices.leases.store import LeaseStore
from edgecompress.errors import ConfigError

TTL_S = 1.5  # a holder on a busy machine renews in time


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgres"))])
def place(request, tmp_path):
    return str(tmp_path / "state" / "leases.sqlite3") if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture
def store(place):
    store = LeaseStore(place)
    with store.transaction() as execute:
        execute("DELETE FROM edgecompress_leases")
        execute("DELETE FROM edgecompress_turns")
    return store


CONTENDER = """
import random, sys, time
from edgecompress.devices.leases.store import LeaseStore
from edgecompress.devices.leases.lease import hold_lease
store = LeaseStore(sys.argv[1])
for _ in range(int(sys.argv[2])):
    device = random.choice(["adb:a", "adb:b"])
    with hold_lease(device, wait_s=30, store=store, ttl_s=5):
        with open(f"{sys.argv[3]}/{device}", "x"):  # fails when somebody else is on it
            time.sleep(random.uniform(0, 0.02))
        __import__("os").remove(f"{sys.argv[3]}/{device}")
"""


def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options)


def test_processes_never_overlap_on_a_device(store, place, tmp_path):
    folder = tmp_path / "on-device"
    folder.mkdir()
    processes = [python(CONTENDER, place, 12, folder) for _ in range(5)]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    rows = read_turns(store)
    assert len(rows) == 60
    assert find_overlaps(rows) == []


def test_a_busy_device_names_its_holder_and_other_devices_are_free(store):
    with hold_lease("adb:a", wait_s=0, store=store):
        with hold_lease("adb:b", wait_s=0, store=store):
            pass
        caught = in_thread(lambda: hold_lease("adb:a", wait_s=0.05, store=store).__enter__())
        assert isinstance(caught, DeviceBusy)
        assert f"process {os.getpid()} on" in str(caught)
    with hold_lease("adb:a", wait_s=0, store=store):
        pass


def in_thread(work):
    """Return the error that `work` raises in another thread, where the leases of this thread do not count."""
    raised = []

    def run():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return raised[0] if raised else None


def test_a_thread_that_holds_a_device_may_hold_it_again(store):
    with hold_lease("adb:a", wait_s=0, store=store) as outer, hold_lease("adb:a", wait_s=0, store=store) as inner:
        assert inner is outer
    assert len(read_turns(store)) == 1


HOLDER = """
import sys, time
from edgecompress.devices.leases.store import LeaseStore
from edgecompress.devices.leases.lease import hold_lease
with hold_lease("adb:a", wait_s=5, store=LeaseStore(sys.argv[1]), ttl_s=float(sys.argv[2])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def holder(place):
    process = python(HOLDER, place, TTL_S, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_lease_is_renewed_while_it_is_held(store, place):
    process = holder(place)
    with pytest.raises(DeviceBusy):
        hold_lease("adb:a", wait_s=3 * TTL_S, store=store).__enter__()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    with hold_lease("adb:a", wait_s=0, store=store):
        pass


def test_a_dead_holders_lease_is_taken_over_when_it_runs_out(store, place):
    process = holder(place)
    process.kill()
    process.communicate(timeout=300)
    with pytest.raises(DeviceBusy):
        hold_lease("adb:a", wait_s=0, store=store).__enter__()
    with hold_lease("adb:a", wait_s=10 * TTL_S, store=store):
        pass
    assert find_overlaps(read_turns(store)) == []


def test_a_holder_that_slept_past_its_lease_learns_that_it_lost_it(store, place):
    process = holder(place)
    process.send_signal(signal.SIGSTOP)
    with hold_lease("adb:a", wait_s=10 * TTL_S, store=store):
        process.send_signal(signal.SIGCONT)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "LeaseLost: adb:a: the lease ran out" in error
    assert find_overlaps(read_turns(store)) == []


def test_a_holder_is_told_as_soon_as_the_lease_is_lost(store):
    told = threading.Event()

    def robbed():
        with hold_lease("adb:a", wait_s=0, store=store, ttl_s=TTL_S, on_lost=told.set):
            with store.transaction() as execute:
                execute("DELETE FROM edgecompress_leases")
            assert told.wait(60)

    with pytest.raises(LeaseLost, match="does not count"):
        robbed()


def test_the_clock_is_the_stores(store, monkeypatch):
    """A host whose clock is an hour ahead takes nothing over."""
    with hold_lease("adb:a", wait_s=0, store=store):
        monkeypatch.setattr("time.time", lambda: 1e12)
        assert isinstance(in_thread(lambda: hold_lease("adb:a", wait_s=0, store=store).__enter__()), DeviceBusy)


def test_a_failure_gives_the_device_back(store):
    with pytest.raises(KeyboardInterrupt), hold_lease("adb:a", wait_s=0, store=store):
        raise KeyboardInterrupt
    with hold_lease("adb:a", wait_s=0, store=store):
        pass


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mysql://host/db", "cannot lie at mysql://"),
        ("postgresql://u:secret@127.0.0.1:1/db?connect_timeout=1", r"postgresql://127\.0\.0\.1:1/db: the leases cannot be kept"),
        ("{tmp}/text", "file is not a database.*remove it"),
        ("{tmp}/text/below", "cannot be written"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(tmp_path, monkeypatch, place, message):
    (tmp_path / "text").write_text("no database, but long enough to be seen as a damaged one\n" * 100)
    monkeypatch.setenv(lease_store.LEASES_VARIABLE, place.format(tmp=tmp_path))
    with pytest.raises(ConfigError, match=message) as caught:
        open_lease_store()
    assert "secret" not in str(caught.value)


def test_postgresql_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"edgecompress\[postgres\]"):
        LeaseStore("postgresql://host/db")


def test_a_lease_is_named_by_kind_and_serial():
    from edgecompress.devices import open_device

    with closing(open_device("local://")) as device:
        assert lease_name(device) == f"local:{os.uname().nodename}"
