"""The converter and the runner of one format, alive through several files, so that each toolchain and each runtime is loaded once.

What a process has done before never decides how a file ends: where a toolchain or a runtime fails in a process that has served other files,
the same request goes to a new process, and what that one says counts.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import RunningProgram, convert
from edgecompress.artifacts.execution import run_artifact
from edgecompress.artifacts.sandbox import TimeLimitReached
from edgecompress.devices.runners.runner_process import RunnerProcess
from edgecompress.errors import EdgeCompressError, ToolchainError
from edgecompress.network.batches import Batch
from edgecompress.options import DEFAULTS
from edgecompress.records import ConversionReply, ConversionRequest, TensorSpec

CHECK_TIMEOUT_S: Final = 600.0


class FormatSession:
    """Converts requests to one format and runs the files, by processes that stay. Close it.

    Args:
        timeout_s, memory_gb: Limits of each conversion.
        python: Interpreter that has the toolchain.
        while_waiting: Context in which this thread waits for a process.
    """

    def __init__(
        self,
        format: str,  # noqa: A002 - the word of the field
        *,
        timeout_s: float = DEFAULTS.convert_timeout_s,
        memory_gb: float = DEFAULTS.convert_memory_gb,
        python: str = sys.executable,
        while_waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.format, self.timeout_s = format, timeout_s
        self._memory_gb, self._python, self._while_waiting = memory_gb, python, while_waiting
        self._converters: dict[str, RunningProgram] = {}
        self._runner: RunnerProcess | None = None
        self._is_interrupted = False

    def start(self, route: str) -> None:
        """Start the converter of a route, which loads its toolchain while this process prepares the request; nothing where it runs.

        Raises:
            KeyboardInterrupt: The session was interrupted.
        """
        if route not in self._converters and not self._is_interrupted:
            program = toolchains.converter(self.format)
            self._converters[route] = RunningProgram(program, ahead=route, memory_gb=self._memory_gb, python=self._python)
        self._check_interrupt()

    def convert(self, request: ConversionRequest, *, timeout_s: float | None = None, log: Path | None = None) -> ConversionReply:
        """Convert a request by the process of its route; raises what `run_converter` raises."""
        self.start(request.route)
        has_served = self._converters[request.route].answered > 0
        try:
            return self._convert(request, timeout_s or self.timeout_s, log)
        except ToolchainError as error:
            if not has_served or isinstance(error, TimeLimitReached):
                raise
        return self._convert(request, timeout_s or self.timeout_s, log)

    def run_artifact(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        batch: Batch,
        *,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> Batch:
        """Return a file's outputs on `batch`; see `execution.run_artifact`."""
        has_served = self._runner is not None
        try:
            return self._run(path, inputs, outputs, batch, timeout_s)
        except ToolchainError:
            if not has_served:
                raise
        return self._run(path, inputs, outputs, batch, timeout_s)

    def interrupt(self) -> None:
        """Kill all processes, and let whoever waits for one or starts one raise KeyboardInterrupt. Any thread may call this."""
        self._is_interrupted = True
        for process in (*list(self._converters.values()), self._runner):
            if process is not None:
                process.kill()

    def close(self) -> None:
        """Kill all processes."""
        for route in list(self._converters):
            self._converters.pop(route).close()
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _convert(self, request: ConversionRequest, timeout_s: float, log: Path | None) -> ConversionReply:
        self.start(request.route)
        program = self._converters[request.route]
        try:
            with self._waiting():
                return convert(program, request, timeout_s=timeout_s, log=log)
        finally:
            if not program.is_alive:
                self._converters.pop(request.route).close()

    def _run(self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batch: Batch, timeout_s: float) -> Batch:
        if self._runner is None:
            self._runner = RunnerProcess()
        self._check_interrupt()
        try:
            with self._waiting():
                return run_artifact(path, inputs, outputs, batch, timeout_s=timeout_s, process=self._runner)[0]
        finally:
            if not self._runner.is_alive:
                self._runner.close()
                self._runner = None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            with self._while_waiting():
                yield
        except EdgeCompressError:
            self._check_interrupt()
            raise

    def _check_interrupt(self) -> None:
        if self._is_interrupted:
            raise KeyboardInterrupt
