"""A device end that speaks the adb protocol over TCP, for tests with the unmodified `adb` of any version and no phone.

python device_tests/emulated/android --root DIR     # prints its port
adb connect 127.0.0.1:PORT
"""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from device import Device
from link import Link


async def main():
    parser = argparse.ArgumentParser(prog="python device_tests/emulated/android", description="A device end of adb over TCP, for tests.")
    parser.add_argument("--root", type=Path, required=True, help="folder that plays the device's file system")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--python", default=sys.executable, help="what python3 is on the device")
    parser.add_argument("--fault", default="none", help="the fault in force at first, see faults.py; later ones are written to DIR/fault")
    options = parser.parse_args()
    device = Device(options.root, python=options.python, fault=options.fault)
    server = await asyncio.start_server(lambda reader, writer: Link(reader, writer, device).serve(), "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - whoever started it reads its port
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
