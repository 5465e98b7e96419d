"""The process of one device in a farm: `python -m edgecompress.farm.worker`. It is told what to do line by line and ends with its input.

A process each, so that one device's library, crash or hang is not the others', and so that an interrupt ends what runs there in an
orderly way: the end of input interrupts what is being done as Ctrl-C would, also when the farm itself was killed.
"""

import queue
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec

from edgecompress.devices import Device, open_device
from edgecompress.devices.base import Late, LinkLost
from edgecompress.devices.cooling import cool_down
from edgecompress.devices.inventory import Entry, filled
from edgecompress.devices.leases import Busy, LeaseLost, hold, name_of
from edgecompress.errors import DeviceError, EdgeCompressError
from edgecompress.farm.messages import Order, Report
from edgecompress.records import BenchmarkResult, Measuring
from edgecompress.verbs.bench import on_connected

Orders = queue.SimpleQueue[Order]
ASK_AGAIN_S = 5.0


def tell(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def interrupt() -> None:
    """Interrupt the main thread; a signal to the process might be taken by another thread, and would not wake this one."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def listen(orders: Orders) -> None:
    for line in sys.stdin.buffer:
        orders.put(msgspec.json.decode(line, type=Order))
    interrupt()


def turn(device: Device, how: Measuring, orders: Orders) -> tuple[BenchmarkResult, ...]:
    """Take the lease, do one job, give it back; () when there was none after all."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(hold(name_of(device), wait_s=ASK_AGAIN_S, lost=interrupt))
                break
            except Busy as busy:
                tell(Report(event="state", text=str(busy)))
        note = ""
        if how.cooldown_c is not None:
            tell(Report(event="state", text=f"cooling to {how.cooldown_c:g} °C"))
            note = cool_down(device, how.cooldown_c)
        tell(Report(event="ready"))
        order = orders.get()
        if order.do != "run":
            return ()
        return on_connected(device, [Path(file) for file in order.files], how, note)


def serve(entry: Entry, how: Measuring, orders: Orders) -> None:
    with ExitStack() as link:
        device: Device | None = None
        while True:
            orders.get()
            try:
                if device is None:
                    tell(Report(event="state", text="connecting"))
                    device = link.enter_context(open_device(entry.url))
                results = turn(device, how, orders)
            except EdgeCompressError as error:
                link.close()
                device = None
                tell(Report(event="failed", kind=blame(error), text=str(error)))
            else:
                tell(Report(event="done", results=results))


def blame(error: EdgeCompressError) -> Literal["lost", "late", "device", "job"]:
    """Return who is at fault: the way there, perhaps the way there, the device and what ran on it, or the files."""
    if isinstance(error, (LinkLost, LeaseLost)):
        return "lost"
    if isinstance(error, Late):
        return "late"
    return "device" if isinstance(error, DeviceError) else "job"


def main() -> None:
    entry = msgspec.json.decode(sys.argv[1], type=Entry)
    how = filled(msgspec.json.decode(sys.argv[2], type=Measuring), entry)
    orders: Orders = queue.SimpleQueue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    try:
        serve(entry, how, orders)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
