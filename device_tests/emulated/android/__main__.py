"""Run an emulated phone that speaks the adb protocol over TCP, for the unmodified `adb` of any version.

    python device_tests/emulated/android --root DIR     # prints its address as JSON and runs until it is interrupted
    adb connect 127.0.0.1:PORT

README.md beside this file describes what is emulated and what is not.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all emulated devices share

from faults import FAULT_NAMES, Faults
from folder import REMOTE, Folder
from link import Link
from phone import Phone, enter_device
from rootfs import find_missing_tools, hold_phone_rootfs
from rootfs_cache import CACHE, IN_NAMESPACES, MIRROR, EmulationError

HERE = Path(__file__).resolve().parent
USERLANDS = ("auto", "arm64", "host")
STOP_S = 10


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="android", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder for this device alone; DIR/fault holds the fault in force")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument(
        "--userland",
        choices=USERLANDS,
        default="auto",
        help="the programs that run on the device; auto is arm64 where possible",
    )
    parser.add_argument("--fault", default="none", help="the fault in force at first; README.md lists them")
    parser.add_argument(
        "--old", action="store_true", help="speak as Android 6 does: messages of 4 KB, CR LF, error output in the output, no exit status"
    )
    parser.add_argument("--storage-mib", type=int, default=512, help="arm64: size of /data, which is a file system in memory")
    parser.add_argument("--cache", type=Path, default=CACHE, help="arm64: where the root file system is kept")
    parser.add_argument("--mirror", default=MIRROR, help="arm64: a Debian mirror")
    parser.add_argument("--python", default=sys.executable, help="host: the interpreter that python3 starts on the device")
    parser.add_argument("--system", type=Path, help=argparse.SUPPRESS)  # internal: the root file system
    options = parser.parse_args(argv)
    if options.fault.split()[0] not in FAULT_NAMES:
        parser.error(f"--fault {options.fault}: unknown; choose from {', '.join(FAULT_NAMES)}")
    options.root = options.root.resolve()
    options.root.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        if options.system or choose_userland(options) == "host":
            asyncio.run(serve_device(options))
        else:
            serve_in_namespaces(options, argv)
    except EmulationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def choose_userland(options: argparse.Namespace) -> str:
    """Return "arm64" or "host", and print what is missing for arm64 where "auto" has to choose the host's programs."""
    if options.userland != "auto":
        return options.userland
    if missed := find_missing_tools():
        sys.stderr.write(f"this machine's own programs run on the device, with faults of its storage played: {'; '.join(missed)}\n")
        return "host"
    return "arm64"


def serve_in_namespaces(options: argparse.Namespace, argv: list[str]) -> None:
    """Start this program again inside namespaces of the device's own; each of the two ends with the other."""
    with hold_phone_rootfs(cache=options.cache, mirror=options.mirror) as system:
        inside = [*IN_NAMESPACES, "--uts", "--ipc", sys.executable, str(HERE), *argv, "--system", str(system)]
        process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if line := process.stdout.readline():
                (device,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                print_description({**json.loads(line), "storage": f"/proc/{device}/root{REMOTE}"})
            process.wait()
        finally:
            process.stdin.close()  # the device ends at the end of its input
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


async def serve_device(options: argparse.Namespace) -> None:
    """Serve as the device for as long as this process runs."""
    faults = Faults(options.root, options.fault)
    server = await asyncio.start_server(lambda reader, writer: Link(reader, writer, device).serve(), "127.0.0.1", options.port)
    if options.system:
        # Only the process that started this one holds the other end. --kill-child would not do: the kernel forgets it at the first file
        # that is touched as another user (prctl(2)).
        asyncio.get_running_loop().add_reader(sys.stdin, os._exit, 0)
        enter_device(options.system, options.root, storage_mib=options.storage_mib)
        device = Phone(faults, mark=str(options.root))
    else:
        device = Folder(options.root, faults, python=options.python, mark=str(options.root))
    device.is_old = options.old
    serial = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    kind = "arm64" if options.system else "host"
    print_description({"url": f"adb://{serial}", "serial": serial, "userland": kind, "storage": str(device.storage)})
    await server.serve_forever()


def print_description(described: dict) -> None:
    sys.stdout.write(f"{json.dumps(described)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
