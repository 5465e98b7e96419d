"""A device end that speaks the adb protocol over TCP, for tests with the unmodified `adb` of any version and no phone.

    python device_tests/emulated/adb_device.py --root DIR [--python PYTHON] [--fault NAME]     # prints its port
    adb connect 127.0.0.1:PORT

What it is: the transport and the services `shell:`, `shell,v2:`, `exec:` and `sync:`. What it is not: Android. Commands run on this host as
this user, below DIR; the path /data/local/tmp is rewritten to a folder of DIR wherever it stands in a command or a sync request.

Protocol: Android's packages/modules/adb, protocol.txt, SYNC.TXT and shell_protocol.h. A message is six little-endian words (command, arg0,
arg1, length, checksum, command ^ 0xffffffff) and its data; a stream may have one unacknowledged WRTE in flight.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import stat
import struct
import sys
from pathlib import Path

VERSION = 0x01000001
MAX_DATA = 256 * 1024
REMOTE = "/data/local/tmp"
AUTH_TOKEN, AUTH_SIGNATURE = 1, 2
SHELL_STDIN, SHELL_STDOUT, SHELL_STDERR, SHELL_EXIT, SHELL_CLOSE_STDIN = range(5)
FAULTS = ("none", "unauthorized", "no-space", "drop-mid-push", "drop-mid-shell", "stall")
DROP_AFTER_BYTES = 4096


class Dropped(Exception):
    """The link goes down now."""


class Stream:
    """One OPENed service: bytes the host sent, and the right to send the next WRTE."""

    def __init__(self, link, local, remote):
        self.link, self.local, self.remote = link, local, remote
        self.received = asyncio.StreamReader()
        self.ready = asyncio.Event()
        self.closed = asyncio.Event()

    async def write(self, data):
        for start in range(0, len(data), MAX_DATA):
            self.ready.clear()
            self.link.send(b"WRTE", self.local, self.remote, data[start : start + MAX_DATA])
            await self.ready.wait()

    def close(self):
        if not self.closed.is_set():
            self.closed.set()
            self.link.send(b"CLSE", self.local, self.remote)


class Link:
    """One connection of an adb server."""

    def __init__(self, reader, writer, device):
        self.reader, self.writer, self.device = reader, writer, device
        self.streams, self.tasks = {}, set()
        self.last_id = 0

    def send(self, command, arg0, arg1, data=b""):
        word = int.from_bytes(command, "little")
        self.writer.write(struct.pack("<6I", word, arg0, arg1, len(data), sum(data) & 0xFFFFFFFF, word ^ 0xFFFFFFFF) + data)

    async def serve(self):
        try:
            while True:
                header = await self.reader.readexactly(24)
                word, arg0, arg1, length, _, _ = struct.unpack("<6I", header)
                data = await self.reader.readexactly(length)
                self.handle(word.to_bytes(4, "little"), arg0, arg1, data)
                await self.writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.drop()

    def drop(self):
        for task in self.tasks:
            task.cancel()
        self.writer.close()

    def handle(self, command, arg0, arg1, data):
        if command == b"CNXN":
            self.send(b"AUTH", AUTH_TOKEN, 0, os.urandom(20))
        elif command == b"AUTH":
            self.authenticate(arg0)
        elif command == b"OPEN":
            self.open(arg0, data.rstrip(b"\0").decode(errors="replace"))
        elif (stream := self.streams.get(arg1)) is not None:
            if command == b"OKAY":
                stream.ready.set()
            elif command == b"WRTE":
                stream.received.feed_data(data)
                self.send(b"OKAY", arg1, arg0)
            elif command == b"CLSE":
                stream.received.feed_eof()
                stream.closed.set()
                stream.ready.set()

    def authenticate(self, kind):
        """Take any signature as that of a known computer; with the fault unauthorized no key is known and nobody accepts a new one."""
        if self.device.fault == "unauthorized":
            if kind == AUTH_SIGNATURE:
                self.send(b"AUTH", AUTH_TOKEN, 0, os.urandom(20))
        else:
            banner = "device::ro.product.name=edge;ro.product.model=Emulated_end;ro.product.device=edge;features=shell_v2,cmd"
            self.send(b"CNXN", VERSION, MAX_DATA, banner.encode())

    def open(self, remote, service):
        name, _, argument = service.partition(":")
        services = {"shell": self.shell, "exec": self.shell, "sync": self.sync}
        kind, *options = name.split(",")
        self.last_id += 1
        stream = Stream(self, self.last_id, remote)
        if kind not in services:
            self.send(b"CLSE", 0, remote)
            return
        self.streams[stream.local] = stream
        self.send(b"OKAY", stream.local, remote)
        task = asyncio.create_task(self.run(services[kind], stream, argument, options))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self, service, stream, argument, options):
        try:
            await service(stream, argument, options)
        except Dropped:
            self.drop()
        except asyncio.IncompleteReadError:
            pass
        finally:
            stream.close()
            del self.streams[stream.local]

    async def shell(self, stream, command, options):
        """Run a command; with option v2 its output, error output and exit status come in packets (id, length, data)."""
        packets = "v2" in options
        fault = self.device.fault if "exec " in command else "none"  # the one that becomes the runner
        if fault == "stall":
            await stream.closed.wait()
            return
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", self.device.here(command),
            cwd=self.device.root, env=self.device.environment(), start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE if packets else asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            if fault == "drop-mid-shell":
                raise Dropped
            pipes = [(SHELL_STDOUT, process.stdout), (SHELL_STDERR, process.stderr)]
            copies = asyncio.gather(*(copy(pipe, stream, kind if packets else None) for kind, pipe in pipes if pipe))
            gone = asyncio.create_task(stream.closed.wait())
            await asyncio.wait({copies, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if packets and not stream.closed.is_set():
                status = await process.wait()
                await stream.write(struct.pack("<BIB", SHELL_EXIT, 1, status if status >= 0 else 128 - status))
            copies.cancel()
        finally:  # adbd ends what the host has hung up on
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def sync(self, stream, _argument, _options):
        while True:
            kind, length = struct.unpack("<4sI", await stream.received.readexactly(8))
            if kind == b"QUIT":
                return
            path = (await stream.received.readexactly(length)).decode(errors="replace")
            if kind == b"STAT":
                await stream.write(struct.pack("<4s3I", b"STAT", *facts(self.device.path(path))))
            elif kind == b"LIST":
                await self.list(stream, self.device.path(path))
            elif kind == b"SEND":
                await self.receive(stream, path)
            elif kind == b"RECV":
                await self.transmit(stream, self.device.path(path))
            else:
                await fail(stream, f"unknown request {kind!r}")

    async def list(self, stream, folder):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            name = entry.name.encode()
            await stream.write(struct.pack("<4s4I", b"DENT", *facts(entry), len(name)) + name)
        await stream.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    async def receive(self, stream, request):
        """Take DATA until DONE. Like the real one it reports an error only at the end and leaves a partial file."""
        name, _, mode = request.rpartition(",")
        path, size, error = self.device.path(name), 0, None
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("wb"))
            except OSError as reason:
                error = f"couldn't create file: {reason.strerror}"
            while True:
                kind, length = struct.unpack("<4sI", await stream.received.readexactly(8))
                if kind == b"DONE":
                    break
                data = await stream.received.readexactly(length)
                size += len(data)
                if self.device.fault == "drop-mid-push" and size > DROP_AFTER_BYTES:
                    raise Dropped
                if self.device.fault == "no-space" and size > DROP_AFTER_BYTES:
                    error = "write failed: No space left on device"
                if error is None:
                    file.write(data)
        if error is None:
            path.chmod(int(mode) & 0o777)
            await stream.write(struct.pack("<4sI", b"OKAY", 0))
        else:
            await fail(stream, error)

    async def transmit(self, stream, path):
        try:
            data = path.read_bytes()
        except OSError as error:
            await fail(stream, f"open failed: {error.strerror}")
            return
        for start in range(0, len(data), 65536):
            chunk = data[start : start + 65536]
            await stream.write(struct.pack("<4sI", b"DATA", len(chunk)) + chunk)
        await stream.write(struct.pack("<4sI", b"DONE", 0))


class EmulatedDevice:
    """A folder that plays the device's file system, and the fault that is switched on."""

    def __init__(self, root, python, fault):
        self.root, self.fault = root.resolve(), fault
        self.storage = self.root / REMOTE.strip("/")
        self.storage.mkdir(parents=True, exist_ok=True)
        programs = self.root / "bin"
        programs.mkdir(exist_ok=True)
        properties = 'case "$1" in ro.kernel.qemu) echo 1;; ro.product.model) echo "Emulated end";; esac\n'
        for name, body in {"python3": f'exec {python} "$@"\n', "getprop": properties}.items():
            (programs / name).write_text(f"#!/bin/sh\n{body}")
            (programs / name).chmod(0o755)

    def here(self, text):
        return text.replace(REMOTE, str(self.storage))

    def path(self, name):
        return Path(self.here(name) if name.startswith(REMOTE) else f"{self.root}/{name.lstrip('/')}")

    def environment(self):
        path = f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.storage), "TMPDIR": str(self.storage), "LANG": "C.UTF-8"}

    async def accept(self, reader, writer):
        await Link(reader, writer, self).serve()


async def copy(pipe, stream, kind):
    while data := await pipe.read(65536):
        await stream.write(data if kind is None else struct.pack("<BI", kind, len(data)) + data)


async def fail(stream, message):
    data = message.encode()
    await stream.write(struct.pack("<4sI", b"FAIL", len(data)) + data)


def facts(path):
    """Return (mode, size, mtime) as sync STAT has them; zeros for a path that is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.S_IFMT(found.st_mode) | stat.S_IMODE(found.st_mode), found.st_size & 0xFFFFFFFF, int(found.st_mtime) & 0xFFFFFFFF


async def main():
    parser = argparse.ArgumentParser(description="A device end of adb over TCP, for tests.")
    parser.add_argument("--root", type=Path, required=True, help="folder that plays the device's file system")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--python", default=sys.executable, help="what python3 is on the device")
    parser.add_argument("--fault", choices=FAULTS, default="none")
    options = parser.parse_args()
    device = EmulatedDevice(options.root, options.python, options.fault)
    server = await asyncio.start_server(device.accept, "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - whoever started it reads its port
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
