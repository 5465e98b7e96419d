"""Call functions in another process: requests and replies are lines of JSON, arrays travel in files."""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np


class Worker:
    """A process of a program that ends in `serve`, run by a given Python, with a number of threads for every library."""

    def __init__(self, python: Path, program: str, *, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
        environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}
        path = Path(__file__).with_name(program)
        self._process = subprocess.Popen(
            [python, path, self._folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        folder = Path(self._folder.name)
        self._process.stdin.write(json.dumps([name, _store_arrays(arguments, folder)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name}: the worker ended; its messages are above")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{name}: {reply['error']}")
        return _load_arrays(reply["made"])


class Workers:
    """A pool of processes of one program, one for each processor."""

    def __init__(self, program: str) -> None:
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._all = [Worker(Path(sys.executable), program, threads=1) for _ in range(os.cpu_count() or 1)]
        for worker in self._all:
            self._idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.__exit__()

    def map(self, name: str, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Call a function with each of these arguments in idle processes; return the replies in order."""

        def call(arguments: dict[str, Any]) -> dict[str, Any]:
            worker = self._idle.get()
            try:
                return worker.call(name, **arguments)
            finally:
                self._idle.put(worker)

        with ThreadPoolExecutor(len(self._all)) as pool:
            return list(pool.map(call, calls))


def serve(*functions: Callable[..., dict[str, Any]]) -> None:
    """Answer calls of these functions until the input ends. Their own output, from Python or C++, goes to stderr."""
    known = {function.__name__: function for function in functions}
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            reply = {"made": _store_arrays(known[name](**_load_arrays(arguments)), Path(sys.argv[1]))}
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


def measure_time(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call in seconds, and the result of the call."""
    started = time.process_time()
    made = function()
    return time.process_time() - started, made


def _store_arrays(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    made = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.npy", value)
            made[name] = {"npy": str(folder / f"{name}.npy")}
        else:
            made[name] = value
    return made


def _load_arrays(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.load(value["npy"], allow_pickle=False) if isinstance(value, dict) and "npy" in value else value
        for name, value in values.items()
    }
