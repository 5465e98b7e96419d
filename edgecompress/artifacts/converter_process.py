"""Start a converter program in a process of its own: both sides of the contract that converters/README.md describes.

The parent (`convert`, `ask`) sends a JSON request and bounds what comes back; the program (`serve`, `answer`) keeps its standard output for
the reply alone, so that a toolchain may print what it likes. TensorFlow and its kin load and crash over there, within the time and memory
that confinement.py grants. No torch is imported here: so `converting` can start a program, whose toolchain takes seconds to load, before
the caller loads what it makes the request with.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from edgecompress import files, toolchains
from edgecompress.artifacts import sandbox
from edgecompress.artifacts.sandbox import LimitReached
from edgecompress.errors import ConfigError, EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.options import DEFAULTS
from edgecompress.records import ConversionReply, ConversionRequest, Record, from_json

MISSING_PACKAGE = 20
REPLY_BYTES = 1 << 20
REQUEST_BYTES = 1 << 20
LOG_TAIL_LINES = 8
EXIT_CODES = {kind.exit_code: kind for kind in (EdgeCompressError, ConfigError, UnsupportedError, ToolchainError, ParityError)}

Q = TypeVar("Q", bound=Record)
R = TypeVar("R", bound=Record)


class ProgramDied(ToolchainError):
    """The program was ended by a signal that nobody here sent."""


class _Failure(msgspec.Struct):
    """What a converter program prints instead of a reply. `package` and `extra` are set when an import failed."""

    error: str
    package: str = ""
    extra: str = ""


def run_converter(
    format: str,  # noqa: A002
    request: ConversionRequest,
    *,
    timeout_s: float = DEFAULTS.convert_timeout_s,
    memory_gb: float = DEFAULTS.convert_memory_gb,
    python: str = sys.executable,
    log: Path | None = None,
) -> ConversionReply:
    """Convert by the program of `format` and leave the file at `request.output`; on any failure there is none.

    Args:
        memory_gb: What the program and all it starts may hold together.
        log: Where everything the program and its toolchain print is kept.

    Raises:
        ConfigError: Unknown format, scheme or route, or the request's files are unusable.
        UnsupportedError: The format has no such op or scheme; says which.
        ToolchainError: A package is missing, the program crashed, was killed, took too long or too much memory, or answered nonsense.
    """
    with start_converter(format, timeout_s=timeout_s, memory_gb=memory_gb, python=python, log=log) as converted:
        return converted(request)


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
    """Start the program of `format`; give the `convert` of one request by it, which takes `timeout_s` at most.

    Args:
        ahead: The route, or "" for the format's only or usual one, whose toolchain is loaded until the request comes; None for none.
    """
    program = toolchains.converter(format)
    with start_program(program, ConversionReply, ahead=ahead, timeout_s=timeout_s, memory_gb=memory_gb, python=python, log=log) as asked:

        def converted(request: ConversionRequest) -> ConversionReply:
            with files.replace_atomically(Path(request.output)) as temporary:
                try:
                    reply = asked(msgspec.structs.replace(request, output=str(temporary)))
                except LimitReached as error:
                    raise LimitReached(f"{error}; allow more with --convert-timeout-s or --convert-memory-gb") from error
                if not temporary.stat().st_size:
                    kept = f"; its log is {log}" if log else ""
                    raise ToolchainError(f"{program.name}: reported success and wrote an empty file{kept}")
            return reply

        yield converted


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
    """Run `program` in an empty folder of its own with `request` on standard input; return the reply, of `kind`.

    Raises:
        EdgeCompressError: What the program's exit status stands for.
        ToolchainError: It crashed, was killed, reached a limit or answered nonsense.
    """
    with start_program(program, kind, timeout_s=timeout_s, memory_gb=memory_gb, python=python, log=log) as asked:
        return asked(request)


@contextmanager
def start_program(
    program: Path,
    kind: type[R],
    *,
    ahead: str | None = None,
    timeout_s: float,
    memory_gb: float,
    python: str = sys.executable,
    log: Path | None = None,
) -> Iterator[Callable[[Record], R]]:
    """Start `program`; give the `ask` of one request. A log of a program that was never asked is not kept."""
    argv, was_asked = [python, "-P", str(program), *([] if ahead is None else [ahead])], False
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as scratch, ExitStack() as opened:
        kept, work = log or Path(scratch, "log"), Path(scratch, "work")
        for folder in (work, kept.parent):
            folder.mkdir(parents=True, exist_ok=True)
        stdout = opened.enter_context(Path(scratch, "stdout").open("w+b"))
        stderr = opened.enter_context(kept.open("w+b"))

        @opened.callback
        def forget() -> None:
            if not was_asked:
                kept.unlink()

        process = sandbox.start_process(
            argv, name=program.name, stdout=stdout, stderr=stderr, cwd=work, environment=_environment(), memory_gb=memory_gb
        )
        finish = opened.enter_context(process)

        def asked(request: Record) -> R:
            nonlocal was_asked
            was_asked = True
            code = finish(msgspec.json.encode(request), timeout_s)
            last, tail = _last_line(stdout), _tail(stderr)
            if code != 0:
                raise _error(code, last, tail, argv)
            return _reply(last, kind, argv, tail)

        yield asked


def _environment() -> dict[str, str]:
    # Programs import from the folder above their own; `-P` keeps their own off the path, where its folders would hide onnx and executorch.
    path = os.pathsep.join(filter(None, (str(toolchains.program_root()), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}


def _last_line(stdout: IO[bytes]) -> bytes:
    size = stdout.seek(0, os.SEEK_END)
    stdout.seek(max(0, size - REPLY_BYTES))
    return stdout.read().rstrip().rpartition(b"\n")[2]


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - (1 << 14)))
    lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(line[:300] for line in lines[-LOG_TAIL_LINES:]) or "nothing"


def _said(argv: list[str]) -> str:
    return Path(argv[2]).name


def _error(code: int, last: bytes, tail: str, argv: list[str]) -> EdgeCompressError:
    """Return the error for a program that did not exit with 0."""
    command = " ".join(argv)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return ProgramDied(f"{_said(argv)}: died by {name}{why}; command: {command}; its log ends: {tail}")
    try:
        failure = msgspec.json.decode(last, type=_Failure)
    except msgspec.MsgspecError:
        return ToolchainError(f"{_said(argv)}: exit status {code}; command: {command}; its log ends: {tail}")
    if code == MISSING_PACKAGE:
        install = f"pip install 'edgecompress[{failure.extra}]'" if failure.extra else "pip install edgecompress"
        return ToolchainError(f"{_said(argv)}: {failure.package} is not installed for {argv[0]}; {install}")
    kind = EXIT_CODES.get(code, ToolchainError)
    return kind(failure.error if kind is not ToolchainError else f"{failure.error}; command: {command}; its log ends: {tail}")


def _reply(last: bytes, kind: type[R], argv: list[str], tail: str) -> R:
    try:
        return from_json(last, kind, source=_said(argv))
    except ConfigError as error:
        raise ToolchainError(f"{_said(argv)}: its last line is no reply ({last[:80]!r}); its log ends: {tail}") from error


def serve_conversion(
    program: str,
    handle: Callable[[ConversionRequest], tuple[bytes, ConversionReply]],
    *,
    extra: Callable[[ConversionRequest], str],
    ahead: Callable[[str], str],
) -> int:
    """Be a converter program: read a request, convert, write the file, print the reply; return the exit status.

    Args:
        program: Its name in messages.
        handle: Returns the file's content and the reply. Imports its toolchain itself, so that a missing package is reported.
        extra: The extra of edgecompress that holds the toolchain for a request.
        ahead: Returns the module that brings the toolchain of a route with it; imported before the request where the caller names a route.
    """

    def converted(request: ConversionRequest) -> ConversionReply:
        started = time.monotonic()
        content, reply = handle(request)
        sys.stderr.write(f"{program}: {len(content)} bytes after {time.monotonic() - started:.1f} s\n")
        _write(Path(request.output), content)
        return reply

    return answer_request(program, converted, ConversionRequest, extra=extra, ahead=ahead)


def answer_request(
    program: str, handle: Callable[[Q], Record], kind: type[Q], *, extra: Callable[[Q], str], ahead: Callable[[str], str] = str
) -> int:
    """Be a program that `ask` starts: read a request of `kind`, print what `handle` makes of it; return the exit status."""
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the toolchain prints, from Python or C++, goes to the log
    asked = None
    for route in sys.argv[1:]:
        with suppress(Exception):  # `handle` meets it again and says so to whoever asks
            import_module(ahead(route))
    try:
        asked = from_json(sys.stdin.buffer.read(REQUEST_BYTES), kind, source=f"{program}: standard input")
        line, code = msgspec.json.encode(handle(asked)).decode(), 0
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        line = json.dumps({"error": str(error), "package": package, "extra": extra(asked) if asked else ""})
        code = MISSING_PACKAGE
    except EdgeCompressError as error:
        line, code = json.dumps({"error": str(error)}), error.exit_code
    reply_to.write(line + "\n")
    reply_to.close()
    return code


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise files.explain_write_error(error, path) from error
