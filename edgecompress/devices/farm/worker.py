"""The process of one device in a farm, `python -m edgecompress.devices.farm.worker`: it reads one order a line and ends with its input.

Each device has a process, so that the library, crash or hang of one device does not stop the others, and so that an interrupt ends what
runs on it in an orderly way: the end of input interrupts the work as Ctrl-C would, also when the farm itself was killed.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from edgecompress.devices import Device, bench, open_device
from edgecompress.devices.cooling import cool_down
from edgecompress.devices.device import CommandTimeout, LinkLost
from edgecompress.devices.farm.messages import FarmWork, WorkerOrder, WorkerReport
from edgecompress.devices.inventory import InventoryEntry, apply_entry
from edgecompress.devices.leases.lease import DeviceBusy, LeaseLost, hold_lease, lease_name
from edgecompress.errors import DeviceError, EdgeCompressError

Orders = queue.SimpleQueue[WorkerOrder]
SendReport = Callable[[WorkerReport[Any]], None]

ASK_AGAIN_S: Final = 5.0  # a worker that waits for a lease reports the holder this often


def interrupt_main_thread() -> None:
    """Interrupt the main thread; a signal to the process might be taken by another thread, and would not wake this one."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def read_orders(orders: Orders) -> None:
    """Put each order of the input into the queue; interrupt the main thread when the input ends."""
    for line in sys.stdin.buffer:
        orders.put(msgspec.json.decode(line, type=WorkerOrder))
    interrupt_main_thread()


def do_one_job(device: Device, entry: InventoryEntry, work: FarmWork, orders: Orders, send: SendReport) -> tuple[Any, ...]:
    """Take the lease, do one job, and give the lease back; return () when the farm had no job after all."""
    measuring = apply_entry(work.measuring, entry) if work.measuring else None
    with ExitStack() as stack:
        _take_lease(stack, device, send)
        note = ""
        if measuring is not None and measuring.cooldown_c is not None:
            send(WorkerReport(event="state", text=f"cooling to {measuring.cooldown_c:g} °C"))
            note = cool_down(device, measuring.cooldown_c)
        send(WorkerReport(event="ready"))
        order = orders.get()
        if order.do != "run":
            return ()
        files = [Path(file) for file in order.files]
        if measuring is not None:
            return bench.bench_on_device(device, files, measuring, note)
        from edgecompress.devices import evaluate
        from edgecompress.devices.labelled_data import prepare_job

        assert work.scoring is not None
        scoring = apply_entry(work.scoring, entry)
        jobs = [prepare_job(file, scoring.data, scoring.samples) for file in files]
        return evaluate.evaluate_on_device(device, jobs, scoring)


def _take_lease(stack: ExitStack, device: Device, send: SendReport) -> None:
    """Hold the lease on `device` until `stack` is closed; report who has it for as long as another process does."""
    while True:
        try:
            stack.enter_context(hold_lease(lease_name(device), wait_s=ASK_AGAIN_S, on_lost=interrupt_main_thread))
        except DeviceBusy as busy:
            send(WorkerReport(event="state", text=str(busy)))
        else:
            return


def serve_orders(entry: InventoryEntry, work: FarmWork, orders: Orders, send: SendReport) -> None:
    """Do one job for each "prepare" that arrives, over one connection for as long as nothing fails."""
    with ExitStack() as link:
        device: Device | None = None
        while True:
            orders.get()
            try:
                if device is None:
                    send(WorkerReport(event="state", text="connecting"))
                    device = link.enter_context(open_device(entry.url))
                results = do_one_job(device, entry, work, orders, send)
            except EdgeCompressError as error:
                link.close()
                device = None
                send(WorkerReport(event="failed", kind=classify_failure(error), text=str(error)))
            else:
                send(WorkerReport(event="done", results=results))


def classify_failure(error: EdgeCompressError) -> Literal["lost", "late", "device", "job"]:
    """Return what is at fault: the link, perhaps the link, the device with what ran on it, or the files of the job."""
    if isinstance(error, (LinkLost, LeaseLost)):
        return "lost"
    if isinstance(error, CommandTimeout):
        return "late"
    return "device" if isinstance(error, DeviceError) else "job"


def main() -> None:
    entry = msgspec.json.decode(sys.argv[1], type=InventoryEntry)
    work = msgspec.json.decode(sys.argv[2], type=FarmWork)
    orders: Orders = queue.SimpleQueue()
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a recipe or a library prints goes to stderr

        def send(report: WorkerReport[Any]) -> None:
            out.write(msgspec.json.encode(report) + b"\n")
            out.flush()

        threading.Thread(target=read_orders, args=(orders,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            serve_orders(entry, work, orders, send)


if __name__ == "__main__":
    main()
