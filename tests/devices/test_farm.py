"""The farm with real sshd and adb ends that die, real processes and a real lease store."""

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support.farm import name_boards, running_phones, write_jobs, write_sleeper
from support.fifos import open_when_written
from support.leases import find_overlaps, read_turns
from support.ssh_server import free_port

from edgecompress.devices.farm import FarmError, run_farm
from edgecompress.devices.inventory import InventoryEntry
from edgecompress.devices.leases.store import LEASES_VARIABLE, LeaseStore
from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkOptions


@pytest.fixture
def sleeper(tmp_path):
    """A function that writes a runner which sleeps."""
    return partial(write_sleeper, tmp_path)


@pytest.fixture
def jobs(tmp_path):
    """A function that makes artifacts, a job each."""
    return partial(write_jobs, tmp_path)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A lease store for this test alone, used by the processes of the devices too."""
    monkeypatch.setenv(LEASES_VARIABLE, str(tmp_path / "leases.sqlite3"))
    return LeaseStore(str(tmp_path / "leases.sqlite3"))


@pytest.fixture
def ssh_devices(ssh_server, monkeypatch):
    """A function that names that many boards."""

    def name(count):
        monkeypatch.setenv("HOME", str(ssh_server.home))  # adb's fixtures have another
        return name_boards(ssh_server, count)

    yield name
    (ssh_server.home / ".ssh" / "config").unlink(missing_ok=True)


@pytest.fixture
def phones(adb_server, tmp_path):
    """A function that starts that many phones."""
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(running_phones(tmp_path, count))


def test_forty_jobs_on_eight_devices_that_die(ssh_devices, phones, sleeper, jobs, store):
    todo, kept = jobs(40), []
    results = run_farm(ssh_devices(5) + phones(3), todo, sleeper(0.5, every=6), on_result=kept.append)
    assert [result.artifact for result in results] == [path.name for (path,) in todo]
    assert sorted(result.artifact for result in kept) == [path.name for (path,) in todo]
    rows = read_turns(store)
    assert len(rows) >= 40
    assert find_overlaps(rows) == []
    assert at_once(rows) > 4  # how close to the ideal schedule that comes is told by benchmarks/harness.py


def at_once(rows):
    """Return the most turns that there were at one time."""
    return max(sum(start <= moment < end for _, _, start, end in rows) for _, _, moment, _ in rows)


def test_the_job_of_a_crashed_runner_is_not_tried_again(ssh_devices, sleeper, jobs, store, tmp_path):
    crash = 'if data == b"model 1": os.kill(os.getpid(), 11)'
    with pytest.raises(FarmError, match=r"1 of 4 jobs.*job01\.tflite.*SIGSEGV") as caught:
        run_farm(ssh_devices(2), jobs(4), sleeper(0.0, body=crash))
    assert [result.artifact for result in caught.value.results] == ["job00.tflite", "job02.tflite", "job03.tflite"]
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_a_device_that_cannot_be_reached_is_quarantined_and_the_others_do_its_jobs(ssh_devices, sleeper, jobs, store, monkeypatch):
    monkeypatch.setattr("edgecompress.devices.farm.schedule.BACK_OFF_S", 0.1)  # three failures come long before the last job
    gone = InventoryEntry(url=f"ssh://127.0.0.1:{free_port()}", name="gone")
    seen = {}

    def watch(schedule):
        seen.update({lane.name: (lane.quarantine, lane.done) for lane in schedule.devices})

    results = run_farm([gone, *ssh_devices(1)], jobs(5), sleeper(0.9), on_change=watch)
    assert len(results) == 5
    assert "cannot be reached" in seen["gone"][0]
    assert seen["board0"] == ("", 5)


def test_without_a_device_left_the_jobs_fail_with_the_reason(sleeper, jobs, store, ssh_server):
    gone = InventoryEntry(url=f"ssh://127.0.0.1:{free_port()}", name="gone")
    with pytest.raises(FarmError, match=r"2 of 2 jobs.*no device is left.*cannot be reached") as caught:
        run_farm([gone], jobs(2), sleeper(0.0))
    assert caught.value.results == ()


INTERRUPTED = """
import sys
from pathlib import Path
from edgecompress.devices.inventory import InventoryEntry
from edgecompress.devices.farm import run_farm
from edgecompress.records import BenchmarkOptions
entries = [InventoryEntry(url="ssh://" + name, name=name) for name in sys.argv[3:]]
run_farm(entries, [[Path(sys.argv[1])]] * 4, BenchmarkOptions(runner=sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_gives_the_leases_back_and_ends_what_runs(ssh_devices, sleeper, jobs, store, tmp_path, how):
    ((file,),) = jobs(1)
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    settings = sleeper(0.0, body=f"pipe = open({str(fifo)!r}, 'w'); pipe.write('x'); pipe.flush(); time.sleep(60)")
    names = [entry.name for entry in ssh_devices(2)]
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, file, settings.runner, *names], stderr=subprocess.PIPE)
    with open_when_written(fifo, process) as pipe:
        assert pipe.read(1) + pipe.read(1) == b"xx"
        process.send_signal(how)
        assert pipe.read() == b""  # closed by the last runner that ends
    process.communicate(timeout=300)
    deadline = time.monotonic() + 200
    while leases(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leases(store) == []
    assert len(read_turns(store)) == 2


def leases(store):
    with store.transaction() as execute:
        return execute("SELECT device FROM edgecompress_leases")


@pytest.fixture
def pool(ssh_devices, tmp_path, monkeypatch):
    """An inventory with two boards in the pool "shelf", which has a third device that nobody can reach."""
    entries = [*ssh_devices(2), InventoryEntry(url=f"ssh://127.0.0.1:{free_port()}", name="gone")]
    path = tmp_path / "devices.toml"
    path.write_text("".join(f'[[device]]\nurl = "{entry.url}"\nname = "{entry.name}"\nlabels = ["shelf"]\n' for entry in entries))
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(path))


def bench(*arguments, cwd):
    argv = [sys.executable, "-m", "edgecompress", "bench", *map(str, arguments)]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_keeps_every_result_and_says_what_became_of_each_device(pool, sleeper, jobs, store, tmp_path):
    settings = sleeper(0.5, body='if data == b"model 2": sys.exit("no such op")')
    files = [path for (path,) in jobs(6)]
    done = bench(*files, "--device", "pool:shelf", "--runner", settings.runner, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert "1 of 6 jobs have no result" in done.stderr
    assert "no such op" in done.stderr
    assert "5 of 6 jobs done, 0 waiting, 1 failed" in done.stderr
    assert {line.split()[0] for line in done.stderr.splitlines() if line.startswith(("board", "gone"))} == {"board0", "board1", "gone"}
    kept = sorted(path.name.rpartition("-")[2] for path in (tmp_path / "results").glob("board*/*.json"))
    assert kept == [f"job{number:02}.tflite.json" for number in (0, 1, 3, 4, 5)]
    assert all(f"job{number:02}.tflite" in done.stdout for number in (0, 1, 3, 4, 5))


def test_the_table_lives_on_a_terminal(pool, sleeper, jobs, store, tmp_path):
    files = [path for (path,) in jobs(4)]
    argv = [sys.executable, "-m", "edgecompress", "bench", *files, "--device", "pool:shelf", "--runner", sleeper(0.5).runner]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)
    seen = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                seen += part
        except OSError:  # how Linux says that the other side has closed a terminal
            pass
    assert process.wait(300) == 0
    text = seen.decode()
    assert text.index("measuring") < text.index("4 of 4 jobs done")
    assert "0 of 4 jobs done" in text


def test_a_comparison_stays_on_one_device(pool, sleeper, jobs, store, tmp_path):
    files = [path for (path,) in jobs(2)]
    done = bench(*files, "--device", "pool:shelf", "--compare", "--runner", sleeper(0.1).runner, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 jobs done" in done.stderr
    assert len({path.parent for path in (tmp_path / "results").glob("*/*.json")}) == 1


@pytest.mark.parametrize(
    ("device", "message"), [("pool:attic", "no device of the inventory has this label; labels there: shelf"), ("pool:", "pool:: no device")]
)
def test_a_pool_that_is_empty_is_refused(pool, jobs, store, tmp_path, device, message):
    done = bench(*jobs(1)[0], "--device", device, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_nothing_to_do_is_refused():
    with pytest.raises(ConfigError, match="0 devices for 1 jobs"):
        run_farm([], [[Path("a.tflite")]], BenchmarkOptions())
