"""The adb services `shell:`, `shell,v2:`, `exec:` and `sync:`, see SYNC.TXT and shell_protocol.h in Android's packages/modules/adb."""

import asyncio
import contextlib
import os
import signal
import struct

from folder import stat_fields

SHELL_STDIN, SHELL_STDOUT, SHELL_STDERR, SHELL_EXIT, SHELL_CLOSE_STDIN = range(5)
HEAD = struct.Struct("<4sI")
FAULT_AFTER_BYTES = 4096


class Dropped(Exception):
    """Raised to break the link at once."""


async def serve_shell(device, stream, command, options):
    """Run a command; with option v2 its output, error output and exit status come in packets (id, length, data)."""
    packets = "v2" in options
    runner = "exec " in command  # the command that becomes the runner
    if runner and device.faults.is_on("stall"):
        await stream.closed.wait()
        return
    device.apply_storage_fault()
    argv, options = device.process_arguments(command)
    process = await asyncio.create_subprocess_exec(
        *argv, **options, start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE if packets else asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        if runner and device.faults.is_on("drop-mid-shell"):
            raise Dropped
        breaking = asyncio.create_task(break_link_later(device, stream.link)) if runner and device.faults.delayed_fault() else None
        pipes = [(SHELL_STDOUT, process.stdout), (SHELL_STDERR, process.stderr)]
        line_end = b"\r\n" if device.is_old else b"\n"  # an old device runs each command in a terminal
        copies = asyncio.gather(*(copy_output(pipe, stream, kind if packets else None, line_end) for kind, pipe in pipes if pipe))
        gone = asyncio.create_task(stream.closed.wait())
        await asyncio.wait({copies, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if packets and not stream.closed.is_set():
            status = await process.wait()
            await stream.write(struct.pack("<BIB", SHELL_EXIT, 1, status if status >= 0 else 128 - status))
        copies.cancel()
        if breaking:
            breaking.cancel()
    finally:  # adbd ends a command whose host has hung up
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def break_link_later(device, link):
    name, wait_s = device.faults.delayed_fault()
    await asyncio.sleep(wait_s)
    device.faults.end_current()
    link.apply_moment(name)


async def serve_sync(device, stream, _argument, _options):
    device.apply_storage_fault()
    while True:
        kind, length = HEAD.unpack(await stream.received.readexactly(8))
        if kind == b"QUIT":
            return
        path = (await stream.received.readexactly(length)).decode(errors="replace")
        if kind == b"STAT":
            with device.as_shell_user():
                found = stat_fields(device.local_path(path))
            await stream.write(struct.pack("<4s3I", b"STAT", *found))
        elif kind == b"LIST":
            await send_listing(device, stream, path)
        elif kind == b"SEND":
            await receive_file(device, stream, path)
        elif kind == b"RECV":
            await send_file(device, stream, path)
        else:
            await send_failure(stream, f"unknown request {kind!r}")


async def send_listing(device, stream, name):
    with device.as_shell_user():
        folder = device.local_path(name)
        entries = [(stat_fields(entry), entry.name.encode()) for entry in sorted(folder.iterdir())] if folder.is_dir() else []
    for found, entry in entries:
        await stream.write(struct.pack("<4s4I", b"DENT", *found, len(entry)) + entry)
    await stream.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))


async def receive_file(device, stream, request):
    """Write DATA until DONE. Like the real service it reports an error only at the end and leaves a partial file."""
    name, _, mode = request.rpartition(",")
    size, error = 0, None
    with contextlib.ExitStack() as stack:
        try:
            with device.as_shell_user():
                file = stack.enter_context(device.local_path(name).open("wb", buffering=0))
        except OSError as reason:
            error = f"couldn't create file: {reason.strerror}"
        while True:
            kind, length = HEAD.unpack(await stream.received.readexactly(8))
            if kind == b"DONE":
                break
            data = await stream.received.readexactly(length)
            late = size + length > FAULT_AFTER_BYTES
            if late and device.faults.is_on("drop-mid-push"):
                raise Dropped
            if error is None and not (late and device.faults.is_on("partial-file")):
                try:
                    device.write(file, data, size)
                except OSError as reason:
                    error = f"write failed: {reason.strerror}"
            size += length
    if error is not None:
        await send_failure(stream, error)
        return
    with device.as_shell_user():
        device.local_path(name).chmod(device.effective_mode(int(mode)))
    await stream.write(HEAD.pack(b"OKAY", 0))


async def send_file(device, stream, name):
    try:
        with device.as_shell_user():
            data = device.local_path(name).read_bytes()
    except OSError as error:
        await send_failure(stream, f"open failed: {error.strerror}")
        return
    for start in range(0, len(data), 65536):
        chunk = data[start : start + 65536]
        await stream.write(HEAD.pack(b"DATA", len(chunk)) + chunk)
    await stream.write(HEAD.pack(b"DONE", 0))


async def copy_output(pipe, stream, kind, line_end):
    while data := await pipe.read(65536):
        data = data.replace(b"\n", line_end)
        await stream.write(data if kind is None else struct.pack("<BI", kind, len(data)) + data)


async def send_failure(stream, message):
    data = message.encode()
    await stream.write(HEAD.pack(b"FAIL", len(data)) + data)


SERVICES = {"shell": serve_shell, "exec": serve_shell, "sync": serve_sync}
