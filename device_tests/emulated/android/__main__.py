"""A phone of this machine's own: an end that speaks the adb protocol over TCP, for the unmodified `adb` of any version.

    python device_tests/emulated/android --root DIR     # prints where it is, as JSON, and goes on until it is interrupted
    adb connect 127.0.0.1:PORT

README.md beside this file says what it is and what it is not.
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

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all emulated devices share

from faults import NAMES, Faults
from folder import REMOTE, Folder
from link import Link
from phone import Phone, become
from rootfs import lacks, root_of
from roots import CACHE, ISOLATED, MIRROR, EmulationError

HERE = Path(__file__).resolve().parent
USERLANDS = ("auto", "arm64", "host")
STOP_S = 10


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="android", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of the device's own; the fault in force is DIR/fault")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--userland", choices=USERLANDS, default="auto", help="whose programs run there; auto is arm64 where that can be")
    parser.add_argument("--fault", default="none", help="the fault in force at first; README.md lists them")
    parser.add_argument("--storage-mib", type=int, default=512, help="arm64: what /data, which is memory here, can hold")
    parser.add_argument("--cache", type=Path, default=CACHE, help="arm64: where the root file system is kept")
    parser.add_argument("--mirror", default=MIRROR, help="arm64: a Debian mirror")
    parser.add_argument("--python", default=sys.executable, help="host: what python3 is on the device")
    parser.add_argument("--system", type=Path, help=argparse.SUPPRESS)  # we are inside its namespaces, and this is its root file system
    options = parser.parse_args(argv)
    if options.fault.split()[0] not in NAMES:
        parser.error(f"--fault {options.fault}: unknown; choose from {', '.join(NAMES)}")
    options.root = options.root.resolve()
    options.root.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        if options.system or userland(options) == "host":
            asyncio.run(serve(options))
        else:
            contain(options, argv)
    except EmulationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def userland(options: argparse.Namespace) -> str:
    """Return whose programs will run, and say so where that is less than it could be."""
    if options.userland != "auto":
        return options.userland
    if missed := lacks():
        sys.stderr.write(f"this machine's own programs run on the device, with faults of its storage played: {'; '.join(missed)}\n")
        return "host"
    return "arm64"


def contain(options: argparse.Namespace, argv: list[str]) -> None:
    """Start ourselves again inside namespaces of the device's own, and end with it, or it with us."""
    with root_of(cache=options.cache, mirror=options.mirror) as system:
        inside = [*ISOLATED, "--uts", "--ipc", sys.executable, str(HERE), *argv, "--system", str(system)]
        process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if line := process.stdout.readline():
                (device,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                say({**json.loads(line), "storage": f"/proc/{device}/root{REMOTE}"})
            process.wait()
        finally:
            process.stdin.close()  # what the device ends at
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


async def serve(options: argparse.Namespace) -> None:
    """Be the device for as long as we live."""
    faults = Faults(options.root, options.fault)
    server = await asyncio.start_server(lambda reader, writer: Link(reader, writer, device).serve(), "127.0.0.1", options.port)
    if options.system:
        # Only who started us holds the other end. The kernel forgets --kill-child at the first file touched as another user (prctl(2)).
        asyncio.get_running_loop().add_reader(sys.stdin, os._exit, 0)
        become(options.system, options.root, storage_mib=options.storage_mib)
        device = Phone(faults, mark=str(options.root))
    else:
        device = Folder(options.root, faults, python=options.python, mark=str(options.root))
    serial = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    kind = "arm64" if options.system else "host"
    say({"url": f"adb://{serial}", "serial": serial, "userland": kind, "storage": str(device.storage)})
    await server.serve_forever()


def say(described: dict) -> None:
    sys.stdout.write(f"{json.dumps(described)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
