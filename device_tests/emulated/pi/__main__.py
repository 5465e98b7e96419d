"""Run an emulated Raspberry Pi: ARM programs under qemu-user and an sshd of its own on 127.0.0.1, which leave nothing behind.

    python device_tests/emulated/pi start [--board arm64|armhf]    # prints its address as JSON and returns
    python device_tests/emulated/pi stop  [--board arm64|armhf]
    python device_tests/emulated/pi run   [--board arm64|armhf]    # stays in the foreground until it is interrupted
    python device_tests/emulated/pi build [--board arm64|armhf]    # builds only the root file system

README.md beside this file describes what is emulated and what is not.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all emulated devices share

from boards import BOARDS
from guest import become_sshd
from memory_limit import limit_memory
from rootfs import USER, hold_board_rootfs
from rootfs_cache import CACHE, IN_NAMESPACES, MIRROR, EmulationError

HERE = Path(__file__).resolve().parent
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
MAX_CORES = 4  # a Pi has four; it gets no more than this machine has, so that every CPU mask that looks possible is possible


def main(argv: list[str]) -> int:
    if argv == ["guest"]:  # started by ourselves, in namespaces of its own
        become_sshd(json.load(sys.stdin))
    parser = argparse.ArgumentParser(prog="pi", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--board", choices=BOARDS, default="arm64")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where root file systems are kept")
    parser.add_argument("--mirror", default=MIRROR, help="a Debian mirror")
    parser.add_argument("--storage-mib", type=int, default=512, help="what its disk, which is memory here, can hold")
    parser.add_argument("--memory-mib", type=int, default=0, help="how much memory it has, its disk included; 0 for no limit")
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started us ignored it, as shells do in the background
    try:
        COMMANDS[options.command](options)
    except EmulationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build_rootfs(options: argparse.Namespace) -> None:
    with hold_board_rootfs(BOARDS[options.board], cache=options.cache, mirror=options.mirror) as root:
        print_line(str(root))


def run_device(options: argparse.Namespace) -> None:
    """Print the address of the device, then wait until it ends or this process is told to end it."""
    with (
        hold_board_rootfs(BOARDS[options.board], cache=options.cache, mirror=options.mirror) as root,
        running_device(options, root) as (described, process),
    ):
        print_line(json.dumps(described))
        process.wait()
        raise EmulationError(f"{options.board}: the device ended by itself with status {process.returncode}; its log was written above")


def start_device(options: argparse.Namespace) -> None:
    """Start `run` in a session of its own and leave it running; print the address of a device that runs already."""
    state = state_path(options)
    if running_process(state) is None:
        state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        argv = [sys.executable, str(HERE), "run", "--board", options.board, "--cache", str(options.cache), "--mirror", options.mirror]
        with state.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [*argv, "--storage-mib", str(options.storage_mib), "--memory-mib", str(options.memory_mib)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise EmulationError(state.with_suffix(".log").read_text().strip().rpartition("\n")[2])
        temporary = state.with_suffix(".tmp")
        temporary.write_bytes(line)
        temporary.rename(state)
    print_line(state.read_text().strip())


def stop_device(options: argparse.Namespace) -> None:
    """End the device that `start` left running and wait until it is gone; do nothing where none runs."""
    state = state_path(options)
    pid = running_process(state)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_TIMEOUT_S
        while running_process(state) == pid:
            if time.monotonic() > until:
                raise EmulationError(f"{options.board}: process {pid} did not end within {STOP_TIMEOUT_S} s; kill -9 {pid}")
            time.sleep(0.02)
    state.unlink(missing_ok=True)


COMMANDS = {"start": start_device, "stop": stop_device, "run": run_device, "build": build_rootfs}


def state_path(options: argparse.Namespace) -> Path:
    return options.cache / f"{options.board}.json"


def running_process(state: Path) -> int | None:
    """Return the process that a state file names, or None where it ended or another program has its number now."""
    try:
        pid = int(json.loads(state.read_text())["pid"])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        gone = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, ValueError, KeyError):
        return None
    return pid if str(HERE).encode() in words and not gone else None


@contextmanager
def running_device(options: argparse.Namespace, root: Path):
    """Start the device in namespaces of its own, yield its address and its outermost process, and end it whatever happens."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="edgecompress-pi-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        procs = stack.enter_context(limit_memory(folder.name, options.memory_mib))
        home = folder / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        (folder / "scratch").mkdir()
        host_key = make_key(folder / "host_key")
        user_key = make_key(home / ".ssh/id_ed25519")
        port = free_port()
        (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
        environment = {"QEMU_CPU": BOARDS[options.board].qemu_cpu, "EDGECOMPRESS_EMULATED": "1", "OPENBLAS_NUM_THREADS": "1"}
        settings = {
            "board": options.board, "root": str(root), "scratch": str(folder / "scratch"), "port": port, "storage_mib": options.storage_mib,
            "host_key": (folder / "host_key").read_text(), "user_key": f"{user_key}\n", "environment": environment,
            "cores": min(MAX_CORES, len(os.sched_getaffinity(0))), "limited_by": str(procs or ""),
        }  # fmt: skip
        argv = [*IN_NAMESPACES, "--uts", "--ipc", sys.executable, str(HERE), "guest"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=sys.stderr, text=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        with suppress(BrokenPipeError), process.stdin:  # a process that ended already is reported by the wait below
            process.stdin.write(json.dumps(settings))
        wait_for_sshd(port, process, options.board)
        yield describe_device(options.board, port, home), process


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def describe_device(board: str, port: int, home: Path) -> dict:
    """Return the address of the device and its keys; with HOME set to `home`, edgecompress and ssh need nothing else."""
    identity, known_hosts = home / ".ssh/id_ed25519", home / ".ssh/known_hosts"
    return {
        "url": f"ssh://{USER}@127.0.0.1:{port}",
        "home": str(home),
        "identity": str(identity),
        "known_hosts": str(known_hosts),
        "ssh": ["ssh", "-F", "none", "-i", str(identity), "-o", f"UserKnownHostsFile={known_hosts}", "-o", "IdentitiesOnly=yes",
                "-p", str(port), f"{USER}@127.0.0.1"],
        "board": board,
        "pid": os.getpid(),
    }  # fmt: skip


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True, timeout=30)
    return path.with_suffix(".pub").read_text().strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_sshd(port: int, process: subprocess.Popen, board: str) -> None:
    """Wait until the server sends its greeting."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise EmulationError(f"{board}: its sshd did not start; see the lines above: namespaces and mounts need CAP_SYS_ADMIN")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    raise EmulationError(f"{board}: its sshd said nothing within {START_TIMEOUT_S} s; is this machine busy?")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
