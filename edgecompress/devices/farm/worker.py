"""The process of one device in a farm, `python -m edgecompress.devices.farm.worker`: it reads one instruction a line, ends with its input.

A process each, so that one device's library, crash or hang is not the others', and so that an interrupt ends what runs there in an
orderly way: the end of input interrupts what is being done as Ctrl-C would, also when the farm itself was killed.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgecompress.devices import Device, bench, open_device
from edgecompress.devices.base import Late, LinkLost
from edgecompress.devices.cooling import cool_down
from edgecompress.devices.farm.messages import Order, Report, Work
from edgecompress.devices.inventory import Entry, filled
from edgecompress.devices.leases.leases import Busy, LeaseLost, hold, name_of
from edgecompress.errors import DeviceError, EdgeCompressError

Orders = queue.SimpleQueue[Order]
ASK_AGAIN_S = 5.0
Tell = Callable[[Report[Any]], None]


def interrupt() -> None:
    """Interrupt the main thread; a signal to the process might be taken by another thread, and would not wake this one."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def listen(orders: Orders) -> None:
    for line in sys.stdin.buffer:
        orders.put(msgspec.json.decode(line, type=Order))
    interrupt()


def turn(device: Device, entry: Entry, work: Work, orders: Orders, tell: Tell) -> tuple[Any, ...]:
    """Take the lease, do one job, give it back; () when there was none after all."""
    measuring = filled(work.measuring, entry) if work.measuring else None
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(hold(name_of(device), wait_s=ASK_AGAIN_S, lost=interrupt))
                break
            except Busy as busy:
                tell(Report(event="state", text=str(busy)))
        note = ""
        if measuring is not None and measuring.cooldown_c is not None:
            tell(Report(event="state", text=f"cooling to {measuring.cooldown_c:g} °C"))
            note = cool_down(device, measuring.cooldown_c)
        tell(Report(event="ready"))
        order = orders.get()
        if order.do != "run":
            return ()
        files = [Path(file) for file in order.files]
        if measuring is not None:
            return bench.on_connected(device, files, measuring, note)
        from edgecompress.devices import evaluate
        from edgecompress.devices.labelled import prepare

        assert work.scoring is not None
        scoring = filled(work.scoring, entry)
        return evaluate.on_connected(device, [prepare(file, scoring.data, scoring.samples) for file in files], scoring)


def serve(entry: Entry, work: Work, orders: Orders, tell: Tell) -> None:
    with ExitStack() as link:
        device: Device | None = None
        while True:
            orders.get()
            try:
                if device is None:
                    tell(Report(event="state", text="connecting"))
                    device = link.enter_context(open_device(entry.url))
                results = turn(device, entry, work, orders, tell)
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
    work = msgspec.json.decode(sys.argv[2], type=Work)
    orders: Orders = queue.SimpleQueue()
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a recipe or a library prints goes to stderr

        def tell(report: Report[Any]) -> None:
            out.write(msgspec.json.encode(report) + b"\n")
            out.flush()

        threading.Thread(target=listen, args=(orders,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            serve(entry, work, orders, tell)


if __name__ == "__main__":
    main()
