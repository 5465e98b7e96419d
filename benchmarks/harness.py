"""Measure the overhead of the device harness, and whether its comparisons are honest.

The devices are the adb device end and the sshd of the tests, and this machine. The rows are:

- seconds of a run without its inferences, with all files on the device already (≤ 2);
- seconds of a 50 MB push over those of `adb push` and `scp` (≤ 1.5×), with `confirmed` beside, which includes the hash on both sides;
- seconds of sending the same file again, over the first time (≤ 0.8×);
- seconds of a farm of 8 devices for 40 jobs (24 with --quick), where every sixth job kills its device, over the ideal schedule (≤ 1.3×);
- seconds from a recipe to measured and scored files on an emulated phone and an emulated Pi, with their start (≤ 180; not with --quick;
  their root file systems and the phone's runner are built before);
- how many of 20 comparisons of a file with itself have 1 in their interval, with the machine as it is and beside a busy process (≥ 19; 9
  of 10 with --quick).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

from rows import Rows, parse  # noqa: E402
from support.adb_server import DEVICE_END, adb, running_adb_server  # noqa: E402
from support.emulated_pi import emulated_pi, trust_device  # noqa: E402
from support.farm import ideal_duration_s, name_boards, running_phones, write_jobs, write_sleeper  # noqa: E402
from support.native_runner import build_native_runner  # noqa: E402
from support.processes import with_us  # noqa: E402
from support.require import require  # noqa: E402
from support.runs import OPTIONS, QUICK, command, write_recipe  # noqa: E402
from support.ssh_server import SshServer, running_sshd  # noqa: E402

from edgecompress.devices import open_device  # noqa: E402
from edgecompress.devices.bench import bench  # noqa: E402
from edgecompress.devices.device import Device  # noqa: E402
from edgecompress.devices.farm import run_farm  # noqa: E402
from edgecompress.devices.leases.store import LEASES_VARIABLE as LEASES  # noqa: E402
from edgecompress.devices.runners.file_store import send_files  # noqa: E402
from edgecompress.devices.statistics import ratio  # noqa: E402

MODEL = REPOSITORY / "examples" / "prebuilt" / "resnet20_fashion_mnist-fp32.tflite"
PUSHED_BYTES = 50_000_000
BUSY_PROGRAM = """
import random, time
while True:
    end = time.time() + random.random()
    while time.time() < end:
        sum(range(1000))
    time.sleep(0.5)
"""


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_overhead(rows: Rows, kind: str, url: str) -> None:
    """Measure the seconds of a run without loading and inference, with the files on the device already."""

    def run() -> float:
        made = None

        def measure() -> None:
            nonlocal made
            (made,) = bench([MODEL], device=url, repetitions=10, warmup_s=0.0)

        spent = seconds_of(measure)
        return spent - (made.load_ms + made.first_ms + sum(made.warmup_ms) + sum(made.latency_ms)) / 1e3

    first = run()
    rows.add(f"seconds beside inference, {kind}", ours=min(run() for _ in range(3)), peer=None, bound=2, first=first)


def measure_push(rows: Rows, kind: str, url: str, peer: Callable[[Path, str], list[object]], folder: Path, *, times: int) -> None:
    """Measure pushes of random files, by a run and by the program of the peer."""
    ours, theirs, confirmed, again = [], [], [], []
    path = folder / "pushed"
    with open_device(url) as device:
        target = device.base / "peer"
        command = peer(path, str(target))
        for i in range(times):
            path.write_bytes(os.urandom(PUSHED_BYTES))
            theirs.append(seconds_of(lambda: subprocess.run(command, check=True, capture_output=True)))
            ours.append(seconds_of(lambda: device.push(path, target)))
            confirmed.append(seconds_to_send(device, path, 2 * i))
            again.append(seconds_to_send(device, path, 2 * i + 1))
        device.run(["rm", "-f", str(target)], timeout_s=20)
    rows.add(f"seconds of a 50 MB push, {kind}", ours=min(ours), peer=min(theirs), bound=1.5, confirmed=min(confirmed))
    rows.add(f"seconds of the same file again, {kind}", ours=min(again), peer=min(confirmed), bound=0.8)


def seconds_to_send(device: Device, path: Path, i: int) -> float:
    work = device.base / f"edgecompress-harness{i}"
    try:
        return seconds_of(lambda: send_files(device, work, {"file": path}, keep={"file"}))
    finally:
        device.run(["rm", "-rf", str(work)], timeout_s=20)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Keep a processor busy for a second at a time, at random moments."""
    process = subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure_repeatability(rows: Rows, name: str, *, runs: int, repetitions: int) -> None:
    found, noisy = [], 0
    for _ in range(runs):
        first, second = bench([MODEL, MODEL], compare=True, repetitions=repetitions, warmup_s=0.1)
        found.append(ratio(second, first))
        noisy += bool(second.noisy)
    held = sum(interval.low <= 1 <= interval.high for interval in found)
    width = sorted(interval.high - interval.low for interval in found)[runs // 2]
    rows.add(f"of {runs} comparisons with itself, 1 inside, {name}", ours=held, peer=None, bound=runs - max(1, runs // 20), sense=">=",
             median_width=width, noisy=noisy)  # fmt: skip


def measure_farm(rows: Rows, folder: Path, ssh: SshServer, *, jobs: int, job_s: float) -> None:
    """Let 5 boards and 3 phones do jobs that sleep, where every sixth run kills its device half way.

    The peer is `ideal_duration_s`: it pays for the half jobs that are lost, and for no start, connection, transfer, or return of a device.
    """
    todo, every = write_jobs(folder, jobs), 6
    with running_phones(folder, 3) as phones:
        entries = name_boards(ssh, 5) + phones
        spent = seconds_of(lambda: run_farm(entries, todo, write_sleeper(folder, job_s, every=every)))
    died = len(list((folder / "runs").iterdir())) - len(todo)
    peer = ideal_duration_s(len(todo), len(entries), job_s, every)
    rows.add(f"seconds of a farm, 8 devices, {jobs} jobs of {job_s:g} s", ours=spent, peer=peer, bound=1.3, died=died)


@contextmanager
def attached_phone(root: Path, userland: str) -> Iterator[str]:
    """Start the adb device end; yield its serial."""
    argv = [*with_us(), sys.executable, DEVICE_END, "--root", root, "--userland", userland]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as end:
        try:
            serial = json.loads(end.stdout.readline())["serial"]
            adb("connect", serial)
            yield serial
        finally:
            end.terminate()


@contextmanager
def emulated_device(target: str, folder: Path) -> Iterator[tuple[str, tuple[str | Path, ...]]]:
    """Start a device for `target` whose programs are ARM code; yield its URL and the options that it needs."""
    if target == "android":
        with attached_phone(folder / "phone", "arm64") as serial:
            yield f"adb://{serial}", ("--runner", build_native_runner())
    else:
        with emulated_pi(folder / "log") as (described, _), pytest.MonkeyPatch.context() as patch:
            yield trust_device(described, patch), ()


def measure_whole_path(rows: Rows, target: str, folder: Path) -> None:
    """Export a small network for `target`, then measure and score both files on an emulated device."""
    folder.mkdir()
    recipe, run = write_recipe(folder / "digits"), folder / "runs" / "digits"
    files = [run / "artifacts" / f"digits-{scheme}.tflite" for scheme in ("fp32", "int8-static")]

    def work() -> None:
        with emulated_device(target, folder) as (url, options):
            for line in (
                ("export", recipe, "--target", target, "--run", run, *OPTIONS, *QUICK),
                ("bench", *files, "--device", url, *options, "--repetitions", 3),
                ("evaluate", *files, "--device", url, *options, "--samples", 20),
            ):
                answer = command(*line, cwd=folder)
                assert answer.code == 0, answer.err

    rows.add(f"seconds of the whole path, {target}", ours=seconds_of(work), peer=None, bound=180)


def measure_on_devices(rows: Rows, folder: Path, *, pushes: int, jobs: int, job_s: float, paths: bool) -> None:
    """Start an adb device end and an sshd with homes of their own, and measure on both."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        ssh = stack.enter_context(running_sshd(folder, "Subsystem sftp internal-sftp"))  # for the peer, scp
        ssh.known_hosts.write_text(ssh.known_line())
        for name, value in stack.enter_context(running_adb_server(require("adb", "adb"), ssh.home)).items():
            patch.setenv(name, value)
        patch.setenv(LEASES, str(folder / "leases.sqlite3"))
        measure_farm(rows, folder, ssh, jobs=jobs, job_s=job_s)
        if paths:
            build_native_runner()  # builds the runner unless it exists, outside of the measured time
            for target in ("android", "raspberry-pi"):
                measure_whole_path(rows, target, folder / target)
        serial = stack.enter_context(attached_phone(folder / "phone", "host"))
        measure_overhead(rows, "adb", f"adb://{serial}")
        measure_overhead(rows, "ssh", ssh.url)
        measure_push(
            rows, "adb", f"adb://{serial}", lambda path, to: [os.environ["ADB"], "-s", serial, "push", path, to], folder, times=pushes
        )
        known = ["-q", "-B", "-o", f"UserKnownHostsFile={ssh.known_hosts}", "-i", ssh.home / ".ssh" / "id_ed25519", "-P", str(ssh.port)]
        measure_push(rows, "ssh", ssh.url, lambda path, to: ["scp", *known, path, f"127.0.0.1:{to}"], folder, times=pushes)


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.write)
    with tempfile.TemporaryDirectory() as name:
        if options.quick:
            measure_on_devices(rows, Path(name), pushes=1, jobs=24, job_s=6.0, paths=False)
        else:
            measure_on_devices(rows, Path(name), pushes=5, jobs=40, job_s=10.0, paths=True)
    runs, repetitions = (10, 100) if options.quick else (20, 400)
    measure_repeatability(rows, "as the machine is", runs=runs, repetitions=repetitions)
    with busy_machine():
        measure_repeatability(rows, "beside a busy process", runs=runs, repetitions=repetitions)
    rows.end()


if __name__ == "__main__":
    main()
