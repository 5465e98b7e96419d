"""Run converter programs in processes of their own: the caller's side of the contract in converters/README.md; `serving` has the other.

The caller sends requests as lines of JSON and bounds the size of the replies. TensorFlow and other toolchains load and crash in the
program's process, within the limits of time and memory that `sandbox` sets. This module does not import torch: `start_converter` can thus
start a program, whose toolchain takes seconds to load, before the caller imports torch for the request.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, TypeVar

import msgspec

from edgecompress import files, toolchains
from edgecompress.artifacts import sandbox
from edgecompress.artifacts.sandbox import LimitReached
from edgecompress.artifacts.serving import MISSING_PACKAGE, STYLES, Failure
from edgecompress.errors import ConfigError, EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.options import DEFAULTS
from edgecompress.records import ConversionReply, ConversionRequest, Record, from_json

REPLY_BYTES: Final = 1 << 20
LOG_TAIL_BYTES: Final = 1 << 14
LOG_TAIL_LINES: Final = 8
LOG_NOTE: Final = "; its log is "  # ends the message of a failure whose log is kept
EXIT_CODES: Final = {kind.exit_code: kind for kind in (EdgeCompressError, ConfigError, UnsupportedError, ToolchainError, ParityError)}

R = TypeVar("R", bound=Record)


class ProgramDied(ToolchainError):
    """The program died by a signal that edgecompress did not send."""


def run_converter(
    format: str,  # noqa: A002
    request: ConversionRequest,
    *,
    timeout_s: float = DEFAULTS.convert_timeout_s,
    memory_gb: float = DEFAULTS.convert_memory_gb,
    python: str = sys.executable,
    log: Path | None = None,
) -> ConversionReply:
    """Run the converter program of `format` on one request; the file is at `request.output`, and absent after a failure.

    Args:
        memory_gb: Limit on the memory of the program and all processes that it starts, together.
        log: File that keeps everything the program and its toolchain print.

    Raises:
        ConfigError: The format, scheme or route is unknown, or a file of the request is unusable.
        UnsupportedError: The format lacks an op or a scheme, which the message names.
        ToolchainError: A package is missing, or the program crashed, was killed, reached a limit or printed no valid reply.
    """
    with start_converter(format, timeout_s=timeout_s, memory_gb=memory_gb, python=python, log=log) as convert:
        return convert(request)


@contextmanager
def start_converter(
    format: str,  # noqa: A002
    *,
    ahead: str | None = None,
    timeout_s: float = DEFAULTS.convert_timeout_s,
    memory_gb: float = DEFAULTS.convert_memory_gb,
    python: str = sys.executable,
    log: Path | None = None,
) -> Iterator[Callable[[ConversionRequest], ConversionReply]]:
    """Start the converter program of `format`; yield the function that converts one request within `timeout_s`.

    Args:
        ahead: Route whose toolchain the program loads while it waits for the request, "" for the default route; None loads nothing.
    """
    with closing(RunningProgram(toolchains.converter(format), ahead=ahead, memory_gb=memory_gb, python=python)) as program:
        yield lambda request: convert(program, request, timeout_s=timeout_s, log=log, is_last=True)


def convert(
    program: "RunningProgram", request: ConversionRequest, *, timeout_s: float, log: Path | None = None, is_last: bool = False
) -> ConversionReply:
    """Convert a request by a running converter program, as `run_converter` does by one of its own."""
    with files.replace_atomically(Path(request.output)) as temporary:
        asked = msgspec.structs.replace(request, output=str(temporary))
        try:
            reply = program.ask(asked, ConversionReply, timeout_s=timeout_s, log=log, is_last=is_last)
        except LimitReached as error:
            raise type(error)(f"{error}; allow more with --convert-timeout-s or --convert-memory-gb") from error
        if not temporary.stat().st_size:
            kept = f"{LOG_NOTE}{log}" if log else ""
            raise ToolchainError(f"{program.name}: reported success and wrote an empty file{kept}")
    return reply


def run_program(
    program: Path,
    request: Record,
    kind: type[R],
    *,
    timeout_s: float,
    memory_gb: float,
    python: str = sys.executable,
    log: Path | None = None,
) -> R:
    """Run `program` in an empty folder of its own with `request` on standard input; return its reply, a `kind`.

    Raises:
        EdgeCompressError: The program reported an error; its exit status selects the class.
        ToolchainError: The program crashed, was killed, reached a limit or printed no valid reply.
    """
    with closing(RunningProgram(program, memory_gb=memory_gb, python=python)) as running:
        return running.ask(request, kind, timeout_s=timeout_s, log=log, is_last=True)


class RunningProgram:
    """A program that answers requests one after another, in an empty folder of its own. A request that fails ends it. Close it.

    Args:
        ahead: See `start_converter`.

    Attributes:
        name: Name of the program in messages.
        answered: The number of requests that it has answered.
        is_alive: Whether it can be asked.
    """

    def __init__(self, program: Path, *, ahead: str | None = None, memory_gb: float, python: str = sys.executable) -> None:
        self.name, self.answered, self.is_alive = program.name, 0, True
        self._argv = [python, "-P", str(program), *([] if ahead is None else [ahead])]
        self._read_bytes = self._logged_bytes = 0
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecompress-")))
            self._work = scratch / "work"
            self._work.mkdir()
            self._stdout, self._stderr = (stack.enter_context((scratch / name).open("w+b")) for name in ("stdout", "stderr"))
            started = sandbox.start_process(
                self._argv,
                name=self.name,
                stdout=self._stdout,
                stderr=self._stderr,
                cwd=self._work,
                environment=_environment(),
                memory_gb=memory_gb,
            )
            self._process = stack.enter_context(started)
            self._stack = stack.pop_all()

    def ask(self, request: Record, kind: type[R], *, timeout_s: float, log: Path | None = None, is_last: bool = False) -> R:
        """Send one request and return its reply, a `kind`.

        Args:
            log: File that keeps what the program prints for this request.
            is_last: Whether the program is to end afterwards; a failure while it ends counts.

        Raises:
            EdgeCompressError: The program reported an error; its exit status selects the class.
            ToolchainError: The program crashed, was killed, reached a limit or printed no valid reply.
        """
        if self.answered:
            _empty_folder(self._work)
        is_answered = None if is_last else self._has_reply
        self.is_alive = False  # until it has answered
        try:
            code = self._process.exchange(msgspec.json.encode(request) + b"\n", timeout_s, is_answered=is_answered)
            last = _last_line(self._stdout, self._read_bytes)
            if code:
                raise _error_of(code, last, self._read_log(), self._argv)
            reply = _parse_reply(last, kind, self._argv)
        except ToolchainError as error:
            error.add_note(f"command: {' '.join(self._argv)}\nits log ends:\n{_log_tail(self._read_log())}")
            if log:
                error.args = (f"{error}{LOG_NOTE}{log}",)
            raise
        finally:
            self._keep_log(log)
        self.is_alive = code is None
        self.answered += 1
        self._read_bytes = self._stdout.seek(0, os.SEEK_END)
        return reply

    def kill(self) -> None:
        """Kill the program at once; whoever waits for a reply gets an error. Any thread may call this."""
        self._process.kill()

    def close(self) -> None:
        """Kill the program, if it runs, and remove its folder."""
        self.is_alive = False
        self._stack.close()

    def _has_reply(self) -> bool:
        """Whether there is a line for the present request; a failure is complete when the program has ended."""
        size = self._stdout.seek(0, os.SEEK_END)
        if size == self._read_bytes:
            return False
        self._stdout.seek(size - 1)
        return self._stdout.read(1) == b"\n" and _parse_failure(_last_line(self._stdout, self._read_bytes)) is None

    def _read_log(self) -> bytes:
        """Return the end of what the program has printed for the present request."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._logged_bytes, size - LOG_TAIL_BYTES))
        return self._stderr.read()

    def _keep_log(self, log: Path | None) -> None:
        """Write what the program has printed for the present request to `log`, unless the disk is full, which its file will tell."""
        self._stderr.seek(self._logged_bytes)
        if log is not None:
            with suppress(OSError):
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("wb") as file:
                    shutil.copyfileobj(self._stderr, file)
        self._logged_bytes = self._stderr.seek(0, os.SEEK_END)


def _environment() -> dict[str, str]:
    # Programs import from the folder above their own; `-P` keeps their own off the path, where its folders would hide onnx and executorch.
    path = os.pathsep.join(filter(None, (str(toolchains.program_root()), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GOMP_SPINCOUNT": "0",  # threads that spin would slow down a converter beside this one
    }


def _empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _last_line(stdout: IO[bytes], start: int) -> bytes:
    """Return the last line behind `start`, of bounded length."""
    size = stdout.seek(0, os.SEEK_END)
    stdout.seek(max(start, size - REPLY_BYTES))
    return stdout.read().rstrip().rpartition(b"\n")[2]


def _log_tail(log: bytes) -> str:
    lines = [line.strip() for line in STYLES.sub("", log.decode(errors="replace")).splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[-LOG_TAIL_LINES:])


def _program_name(argv: list[str]) -> str:
    return Path(argv[2]).name


def _parse_failure(line: bytes) -> Failure | None:
    try:
        return msgspec.json.decode(line, type=Failure)
    except msgspec.MsgspecError:
        return None


def _error_of(code: int, last: bytes, log: bytes, argv: list[str]) -> EdgeCompressError:
    """Return the error that a nonzero exit status stands for."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return ProgramDied(f"{_program_name(argv)}: died by {name}{why}")
    failure = _parse_failure(last)
    if failure is None:
        said = _log_tail(log).rpartition("\n")[2]
        return ToolchainError(f"{_program_name(argv)}: exit status {code}{': ' if said else ''}{said}")
    if code == MISSING_PACKAGE:
        install = f"pip install 'edgecompress[{failure.extra}]'" if failure.extra else "pip install edgecompress"
        return ToolchainError(f"{_program_name(argv)}: {failure.package} is not installed for {argv[0]}; {install}")
    return EXIT_CODES.get(code, ToolchainError)(failure.error)


def _parse_reply(last: bytes, kind: type[R], argv: list[str]) -> R:
    try:
        return from_json(last, kind, source=_program_name(argv))
    except ConfigError as error:
        raise ToolchainError(f"{_program_name(argv)}: its last line is no reply ({last[:80]!r})") from error
