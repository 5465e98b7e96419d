"""The transport of adb: messages, authentication, and the streams that carry services.

The protocol is that of Android's packages/modules/adb, protocol.txt. A message is six little-endian words (command, arg0, arg1, length,
checksum, command ^ 0xffffffff) and its data; a stream may have one unacknowledged WRTE in flight.
"""

import asyncio
import os
import struct

from services import SERVICES, Dropped

VERSION, MAX_DATA = 0x01000001, 256 * 1024
OLD_VERSION, OLD_MAX_DATA = 0x01000000, 4096  # of Android 6 and older
HEADER = struct.Struct("<6I")
AUTH_TOKEN, AUTH_SIGNATURE = 1, 2
BANNER = b"device::ro.product.name=edge;ro.product.model=Emulated_end;ro.product.device=edge;"
FEATURES = b"features=shell_v2,cmd"


class Stream:
    """The stream of one OPENed service: the bytes that the host sent, and an event that is set when the next WRTE may be sent."""

    def __init__(self, link, local, remote):
        self.link, self.local, self.remote = link, local, remote
        self.received = asyncio.StreamReader()
        self.ready = asyncio.Event()
        self.closed = asyncio.Event()

    async def write(self, data):
        for start in range(0, len(data), self.link.max_data):
            self.ready.clear()
            self.link.send(b"WRTE", self.local, self.remote, data[start : start + self.link.max_data])
            await self.ready.wait()

    def close(self):
        if not self.closed.is_set():
            self.closed.set()
            self.link.send(b"CLSE", self.local, self.remote)


class Link:
    """One connection of an adb server to the device."""

    def __init__(self, reader, writer, device):
        self.reader, self.writer, self.device = reader, writer, device
        self.streams, self.tasks = {}, set()
        self.last_id = 0
        self.frozen = False
        self.max_data = OLD_MAX_DATA if device.is_old else MAX_DATA

    def send(self, command, arg0, arg1, data=b""):
        if self.frozen or self.writer.is_closing():
            return
        word = int.from_bytes(command, "little")
        message = HEADER.pack(word, arg0, arg1, len(data), sum(data) & 0xFFFFFFFF, word ^ 0xFFFFFFFF) + data
        now, passed = self.device.faults.count_bytes(len(message))
        self.writer.write(message[:passed] if now != "kill" else message)
        self.apply_moment(now)

    async def serve(self):
        try:
            while True:
                header = await self.reader.readexactly(HEADER.size)
                word, arg0, arg1, length, _, _ = HEADER.unpack(header)
                if length > self.max_data:
                    return  # adbd drops the link
                data = await self.reader.readexactly(length)
                if self.frozen:
                    continue
                self.apply_moment(self.device.faults.count_bytes(HEADER.size + length)[0])
                if not self.frozen and not self.writer.is_closing():
                    self.handle_message(word.to_bytes(4, "little"), arg0, arg1, data)
                    await self.writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:  # the device ends; Python 3.11 would print a traceback for every link
            return
        finally:
            self.drop()

    def apply_moment(self, moment):
        """Cause a fault of MOMENTS; "" causes none."""
        if moment == "drop":
            self.drop()
        elif moment == "freeze":
            self.frozen = True
        elif moment == "kill":
            self.device.kill_runner()
        elif moment == "die":
            os._exit(0)

    def drop(self):
        for task in self.tasks:
            task.cancel()
        self.writer.close()

    def handle_message(self, command, arg0, arg1, data):
        if command == b"CNXN":
            if not self.device.faults.is_on("offline"):
                self.send(b"AUTH", AUTH_TOKEN, 0, os.urandom(20))
        elif command == b"AUTH":
            self.authenticate(arg0)
        elif command == b"OPEN":
            self.open_stream(arg0, data.rstrip(b"\0").decode(errors="replace"))
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
        """Accept any signature as that of a known computer; under the fault "unauthorized" accept none."""
        if not self.device.faults.is_on("unauthorized"):
            if self.device.is_old:
                self.send(b"CNXN", OLD_VERSION, OLD_MAX_DATA, BANNER)
            else:
                self.send(b"CNXN", VERSION, MAX_DATA, BANNER + FEATURES)
        elif kind == AUTH_SIGNATURE:
            self.send(b"AUTH", AUTH_TOKEN, 0, os.urandom(20))

    def open_stream(self, remote, service):
        name, _, argument = service.partition(":")
        kind, *options = name.split(",")
        self.last_id += 1
        stream = Stream(self, self.last_id, remote)
        if kind not in SERVICES:
            self.send(b"CLSE", 0, remote)
            return
        self.streams[stream.local] = stream
        self.send(b"OKAY", stream.local, remote)
        task = asyncio.create_task(self.run_service(SERVICES[kind], stream, argument, options))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run_service(self, service, stream, argument, options):
        try:
            await service(self.device, stream, argument, options)
        except Dropped:
            self.drop()
        except asyncio.IncompleteReadError:
            pass
        finally:
            stream.close()
            del self.streams[stream.local]
