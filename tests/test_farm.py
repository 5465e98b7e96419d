"""Laws of the farm: real sshd and adb ends that die, real processes, a real lease store."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.adb_server import DEVICE_END
from support.ssh_server import free_port
from test_leases import overlaps, turns

from edgecompress.devices.inventory import Entry
from edgecompress.devices.lease_store import SETTING, Store
from edgecompress.errors import ConfigError
from edgecompress.farm import FarmError, Lane, Schedule, Task, run_farm
from edgecompress.records import Measuring

# A runner that sleeps for a known time. Every few runs it kills, half way, what connects its device with us.
RUNNER = """#!{python} -IS
import hashlib, json, os, signal, sys, time
SLEEP_S, EVERY, COUNTER = {sleep_s}, {every}, "{counter}"
number = 0
while True:
    try:
        os.close(os.open(COUNTER + "/" + str(number), os.O_CREAT | os.O_EXCL))
        break
    except FileExistsError:
        number += 1
folder = os.path.dirname(sys.argv[1])
request = json.load(open(sys.argv[1]))
contents = [open(folder + "/" + artifact["path"], "rb").read() for artifact in request["artifacts"]]
data = contents[0]
if EVERY and number % EVERY == EVERY - 1:
    time.sleep(SLEEP_S / 2)
    pid = os.getppid()
    while not any(sign in open("/proc/%d/cmdline" % pid).read() for sign in ("emulated/android", "sshd")):
        pid = int(open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()[1])
    os.kill(pid, 9)
    time.sleep(60)
time.sleep(SLEEP_S)
{body}
reply = {{"schema": 1, "nonce": request["nonce"], "runner": "sleeper", "threads": 1, "started_at": "2026-01-01T12:00:00+00:00",
    "peak_rss_bytes": 1, "results": [{{"sha256": hashlib.sha256(content).hexdigest(), "backend": "sleep", "load_ms": 1.0,
    "latency_ms": [1.0]}} for content in contents]}}
open(folder + "/reply.tmp", "w").write(json.dumps(reply))
os.rename(folder + "/reply.tmp", folder + "/" + request["reply"])
"""


@pytest.fixture
def sleeper(tmp_path):
    """A function that writes a runner which sleeps."""

    def write(sleep_s, *, every=0, body=""):
        counter = tmp_path / "runs"
        counter.mkdir()
        path = tmp_path / "sleeper"
        path.write_text(RUNNER.format(python=sys.executable, sleep_s=sleep_s, every=every, counter=counter, body=body))
        return Measuring(runner=str(path))

    return write


@pytest.fixture
def jobs(tmp_path):
    """A function that makes artifacts, a job each."""

    def make(count):
        files = [tmp_path / f"job{number:02}.tflite" for number in range(count)]
        for number, path in enumerate(files):
            path.write_bytes(b"model %d" % number)
        return [[path] for path in files]

    return make


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The lease store of this test alone, also in the devices' processes."""
    monkeypatch.setenv(SETTING, str(tmp_path / "leases.sqlite3"))
    return Store(str(tmp_path / "leases.sqlite3"))


@pytest.fixture
def ssh_devices(ssh_server, monkeypatch):
    """A function that names that many devices in ~/.ssh/config, all of them the one sshd; to each a connection of its own."""

    def name(count):
        names = [f"board{number}" for number in range(count)]
        monkeypatch.setenv("HOME", str(ssh_server.home))  # adb's fixtures have another
        config.write_text("".join(f"Host {name}\n  HostName 127.0.0.1\n  Port {ssh_server.port}\n" for name in names))
        hosts = ",".join([f"[127.0.0.1]:{ssh_server.port}", *(f"[{name}]:{ssh_server.port}" for name in names)])
        ssh_server.known_hosts.write_text(f"{hosts} {ssh_server.host_key}\n")
        return [Entry(url=f"ssh://{name}", name=name) for name in names]

    config = ssh_server.home / ".ssh" / "config"
    yield name
    config.unlink(missing_ok=True)


@pytest.fixture
def phones(adb_server, tmp_path):
    """A function that starts that many adb ends, each started again after a moment whenever it dies."""
    with ExitStack() as stack:
        over = threading.Event()

        def keep_alive(number, port):
            root = tmp_path / f"phone{number}"
            root.mkdir()
            argv = [sys.executable, DEVICE_END, "--root", root, "--port", str(port), "--userland", "host"]
            while not over.is_set():
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
                process.stdout.readline()
                started.release()
                while process.poll() is None and not over.wait(0.05):
                    pass
                process.terminate()
                process.communicate()
                over.wait(0.2)

        started = threading.Semaphore(0)

        def start(count):
            ports = [free_port() for _ in range(count)]
            threads = [threading.Thread(target=keep_alive, args=pair) for pair in enumerate(ports)]
            for thread in threads:
                stack.callback(thread.join)
            stack.callback(over.set)
            for thread in threads:
                thread.start()
            for _ in threads:
                assert started.acquire(timeout=20)
            return [Entry(url=f"adb://127.0.0.1:{port}", name=f"phone{number}") for number, port in enumerate(ports)]

        yield start


def ideal_s(jobs, devices, sleep_s, every):
    """The length of the schedule in which a free device takes the next job at once and nothing but sleeping takes time."""
    free, left, number = [0.0] * devices, jobs, 0
    while left:
        at = min(range(devices), key=free.__getitem__)
        dies = number % every == every - 1
        free[at] += sleep_s / 2 if dies else sleep_s
        left -= not dies
        number += 1
    return max(free)


def test_forty_jobs_on_eight_devices_that_die(ssh_devices, phones, sleeper, jobs, store):
    sleep_s, every, todo, kept = 4.0, 6, jobs(40), []
    entries = ssh_devices(5) + phones(3)
    started = time.monotonic()
    results = run_farm(entries, todo, sleeper(sleep_s, every=every), keep=kept.append)
    took = time.monotonic() - started
    assert [result.artifact for result in results] == [path.name for (path,) in todo]
    assert sorted(result.artifact for result in kept) == [path.name for (path,) in todo]
    rows = turns(store)
    assert len(rows) >= 40
    assert overlaps(rows) == []
    assert took <= 3 * ideal_s(40, 8, sleep_s, every)  # one device at a time would take eight times the ideal


def test_the_job_of_a_crashed_runner_is_not_tried_again(ssh_devices, sleeper, jobs, store, tmp_path):
    crash = 'if data == b"model 1": os.kill(os.getpid(), 11)'
    with pytest.raises(FarmError, match=r"1 of 4 jobs.*job01\.tflite.*SIGSEGV") as caught:
        run_farm(ssh_devices(2), jobs(4), sleeper(0.0, body=crash))
    assert [result.artifact for result in caught.value.results] == ["job00.tflite", "job02.tflite", "job03.tflite"]
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_a_device_that_cannot_be_reached_is_quarantined_and_the_others_do_its_jobs(ssh_devices, sleeper, jobs, store):
    gone = Entry(url=f"ssh://127.0.0.1:{free_port()}", name="gone")
    seen = {}

    def watch(schedule):
        seen.update({lane.name: (lane.quarantine, lane.done) for lane in schedule.lanes})

    results = run_farm([gone, *ssh_devices(1)], jobs(5), sleeper(0.9), watch=watch)
    assert len(results) == 5
    assert "cannot be reached" in seen["gone"][0]
    assert seen["board0"] == ("", 5)


def test_without_a_device_left_the_jobs_fail_with_the_reason(sleeper, jobs, store, ssh_server):
    gone = Entry(url=f"ssh://127.0.0.1:{free_port()}", name="gone")
    with pytest.raises(FarmError, match=r"2 of 2 jobs.*no device is left.*cannot be reached") as caught:
        run_farm([gone], jobs(2), sleeper(0.0))
    assert caught.value.results == ()


INTERRUPTED = """
import sys
from pathlib import Path
from edgecompress.devices.inventory import Entry
from edgecompress.farm import run_farm
from edgecompress.records import Measuring
entries = [Entry(url="ssh://" + name, name=name) for name in sys.argv[3:]]
run_farm(entries, [[Path(sys.argv[1])]] * 4, Measuring(runner=sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_gives_the_leases_back_and_ends_what_runs(ssh_devices, sleeper, jobs, store, tmp_path, how):
    ((file,),) = jobs(1)
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    settings = sleeper(0.0, body=f"pipe = open({str(fifo)!r}, 'w'); pipe.write('x'); pipe.flush(); time.sleep(60)")
    names = [entry.name for entry in ssh_devices(2)]
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, file, settings.runner, *names], stderr=subprocess.PIPE)
    with fifo.open("rb") as pipe:
        assert pipe.read(1) + pipe.read(1) == b"xx"
        process.send_signal(how)
        assert pipe.read() == b""  # closed by the last runner that ends
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while leases(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leases(store) == []
    assert len(turns(store)) == 2


def leases(store):
    with store.transaction() as execute:
        return execute("SELECT device FROM edgecompress_leases")


@pytest.fixture
def pool(ssh_devices, tmp_path, monkeypatch):
    """An inventory with two boards in the pool "shelf", which has a third device that nobody can reach."""
    entries = [*ssh_devices(2), Entry(url=f"ssh://127.0.0.1:{free_port()}", name="gone")]
    path = tmp_path / "devices.toml"
    path.write_text("".join(f'[[device]]\nurl = "{entry.url}"\nname = "{entry.name}"\nlabels = ["shelf"]\n' for entry in entries))
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(path))


def bench(*arguments, cwd):
    argv = [sys.executable, "-m", "edgecompress", "bench", *map(str, arguments)]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


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
    assert process.wait(30) == 0
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
        run_farm([], [[Path("a.tflite")]], Measuring())


def schedule(devices, count):
    lanes = [Lane(name, Entry(url=f"ssh://{name}")) for name in devices]
    return Schedule(lanes, [Task(number, (f"{number}.tflite",)) for number in range(count)]), *lanes


def test_a_lost_job_goes_first_and_to_another_device():
    plan, a, b = schedule("ab", 2)
    lost = plan.start(a)
    plan.fail(a, "lost", "gone", 0.0)
    assert plan.next_for(b) is lost
    assert plan.next_for(a) is plan.tasks[1]


def test_a_job_that_every_device_lost_may_be_tried_again_but_not_for_ever():
    plan, a = schedule("a", 1)
    for attempt in range(4):
        assert plan.start(a) is plan.tasks[0], attempt
        a.failures = 0
        plan.fail(a, "lost", "gone", 0.0)
    assert plan.tasks[0].error == "gone (tried 4 times)"
    assert plan.is_over


def test_three_failures_in_a_row_and_no_fewer_quarantine_a_device():
    plan, a, _ = schedule("ab", 9)
    for kind in ("device", "lost", "done", "device", "lost", "device"):
        assert not a.quarantine
        plan.start(a)
        if kind == "done":
            plan.finish(a)
        else:
            plan.fail(a, kind, f"{kind} at fault", 0.0)
    assert a.quarantine == "device at fault"
    assert plan.next_for(a) is None


def test_a_bad_job_is_not_held_against_the_device():
    plan, a = schedule("a", 4)
    for _ in range(4):
        plan.start(a)
        plan.fail(a, "job", "no such file", 0.0)
    assert not a.quarantine
    assert all(task.error == "no such file" for task in plan.tasks)
