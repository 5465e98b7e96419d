"""Devices and jobs for farms: boards and phones that die and come back, a runner that kills them, and the ideal duration."""

import subprocess
import sys
import threading
from contextlib import contextmanager

from edgecompress.devices.inventory import InventoryEntry
from edgecompress.records import BenchmarkOptions
from support.adb_server import DEVICE_END
from support.processes import with_us
from support.ssh_server import free_port

# A runner that sleeps for a known time. Every few runs it kills, half way, the process that connects its device with us.
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


def write_sleeper(folder, sleep_s, *, every=0, body=""):
    """Write the runner and return options that use it; it kills its device every `every` runs."""
    counter = folder / "runs"
    counter.mkdir()
    path = folder / "sleeper"
    path.write_text(RUNNER.format(python=sys.executable, sleep_s=sleep_s, every=every, counter=counter, body=body))
    return BenchmarkOptions(runner=str(path))


def write_jobs(folder, count):
    """Write `count` artifacts and return one job for each."""
    files = [folder / f"job{number:02}.tflite" for number in range(count)]
    for number, path in enumerate(files):
        path.write_bytes(b"model %d" % number)
    return [[path] for path in files]


def name_boards(server, count):
    """Name `count` devices in ~/.ssh/config, which all are the one sshd, each over a connection of its own."""
    names = [f"board{number}" for number in range(count)]
    config = server.home / ".ssh" / "config"
    config.write_text("".join(f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n" for name in names))
    hosts = ",".join([f"[127.0.0.1]:{server.port}", *(f"[{name}]:{server.port}" for name in names)])
    server.known_hosts.write_text(f"{hosts} {server.host_key}\n")
    return [InventoryEntry(url=f"ssh://{name}", name=name) for name in names]


@contextmanager
def running_phones(folder, count):
    """Run `count` emulated phones; each is started again soon after it died."""
    over, started = threading.Event(), threading.Semaphore(0)

    def keep_alive(number, port):
        root = folder / f"phone{number}"
        root.mkdir()
        argv = [*with_us(), sys.executable, DEVICE_END, "--root", root, "--port", str(port), "--userland", "host"]
        while not over.is_set():
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            process.stdout.readline()
            started.release()
            while process.poll() is None and not over.wait(0.05):
                pass
            process.terminate()
            process.communicate()
            over.wait(0.2)

    ports = [free_port() for _ in range(count)]
    threads = [threading.Thread(target=keep_alive, args=pair) for pair in enumerate(ports)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert started.acquire(timeout=300)
        yield [InventoryEntry(url=f"adb://127.0.0.1:{port}", name=f"phone{number}") for number, port in enumerate(ports)]
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ideal_duration_s(jobs, devices, sleep_s, every):
    """Return the duration of a schedule in which nothing but sleeping takes time.

    A free device takes the next job at once, a device dies half way every `every` runs and is back at once, and starting, sending,
    connecting and noticing take no time.
    """
    free, left, number = [0.0] * devices, jobs, 0
    while left:
        at = min(range(devices), key=free.__getitem__)
        dies = number % every == every - 1
        free[at] += sleep_s / 2 if dies else sleep_s
        left -= not dies
        number += 1
    return max(free)
