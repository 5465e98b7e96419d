"""Run converter programs in processes of their own: both sides of the contract in converters/README.md.

The caller (`run_converter`, `run_program`) sends a JSON request and bounds the size of the reply. The program (`serve_conversion`,
`answer_request`) keeps its standard output for the reply alone, so that its toolchain may print anything. TensorFlow and other toolchains
load and crash in the program's process, within the limits of time and memory that `sandbox` sets. This module does not import torch:
`start_converter` can thus start a program, whose toolchain takes seconds to load, before the caller imports torch for the request.
"""

import gc
import json
import os
import re
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
LOG_NOTE = "; its log is "  # ends the message of a failure whose log is kept
STYLES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours and cursor movements, for a terminal
EXIT_CODES = {kind.exit_code: kind for kind in (EdgeCompressError, ConfigError, UnsupportedError, ToolchainError, ParityError)}

Q = TypeVar("Q", bound=Record)
R = TypeVar("R", bound=Record)


class ProgramDied(ToolchainError):
    """The program died by a signal that edgecompress did not send."""


class _Failure(msgspec.Struct):
    """The line that a program prints instead of a reply. `package` and `extra` are set where an import failed."""

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
    program = toolchains.converter(format)
    with start_program(program, ConversionReply, ahead=ahead, timeout_s=timeout_s, memory_gb=memory_gb, python=python, log=log) as ask:

        def convert(request: ConversionRequest) -> ConversionReply:
            with files.replace_atomically(Path(request.output)) as temporary:
                try:
                    reply = ask(msgspec.structs.replace(request, output=str(temporary)))
                except LimitReached as error:
                    raise LimitReached(f"{error}; allow more with --convert-timeout-s or --convert-memory-gb") from error
                if not temporary.stat().st_size:
                    kept = f"{LOG_NOTE}{log}" if log else ""
                    raise ToolchainError(f"{program.name}: reported success and wrote an empty file{kept}")
            return reply

        yield convert


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
    with start_program(program, kind, timeout_s=timeout_s, memory_gb=memory_gb, python=python, log=log) as ask:
        return ask(request)


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
    """Start `program`; yield the function that sends it one request. Without a request the log is deleted."""
    argv, was_asked = [python, "-P", str(program), *([] if ahead is None else [ahead])], False
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as scratch, ExitStack() as stack:
        kept, work = log or Path(scratch, "log"), Path(scratch, "work")
        for folder in (work, kept.parent):
            folder.mkdir(parents=True, exist_ok=True)
        stdout = stack.enter_context(Path(scratch, "stdout").open("w+b"))
        stderr = stack.enter_context(kept.open("w+b"))

        @stack.callback
        def delete_unused_log() -> None:
            if not was_asked:
                kept.unlink()

        process = sandbox.start_process(
            argv, name=program.name, stdout=stdout, stderr=stderr, cwd=work, environment=_environment(), memory_gb=memory_gb
        )
        finish = stack.enter_context(process)

        def ask(request: Record) -> R:
            nonlocal was_asked
            was_asked = True
            code = finish(msgspec.json.encode(request), timeout_s)
            last = _last_line(stdout)
            try:
                if code != 0:
                    raise _error_of(code, last, stderr, argv)
                return _parse_reply(last, kind, argv)
            except ToolchainError as error:
                error.add_note(f"command: {' '.join(argv)}\nits log ends:\n{_log_tail(stderr)}")
                if log:
                    error.args = (f"{error}{LOG_NOTE}{log}",)
                raise

        yield ask


def _environment() -> dict[str, str]:
    # Programs import from the folder above their own; `-P` keeps their own off the path, where its folders would hide onnx and executorch.
    path = os.pathsep.join(filter(None, (str(toolchains.program_root()), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}


def _last_line(stdout: IO[bytes]) -> bytes:
    size = stdout.seek(0, os.SEEK_END)
    stdout.seek(max(0, size - REPLY_BYTES))
    return stdout.read().rstrip().rpartition(b"\n")[2]


def _log_tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - (1 << 14)))
    lines = [line.strip() for line in STYLES.sub("", stderr.read().decode(errors="replace")).splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[-LOG_TAIL_LINES:])


def _program_name(argv: list[str]) -> str:
    return Path(argv[2]).name


def _error_of(code: int, last: bytes, stderr: IO[bytes], argv: list[str]) -> EdgeCompressError:
    """Return the error that a nonzero exit status stands for."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return ProgramDied(f"{_program_name(argv)}: died by {name}{why}")
    try:
        failure = msgspec.json.decode(last, type=_Failure)
    except msgspec.MsgspecError:
        said = _log_tail(stderr).rpartition("\n")[2]
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


def serve_conversion(
    program: str,
    handle: Callable[[ConversionRequest], tuple[bytes, ConversionReply]],
    *,
    extra: Callable[[ConversionRequest], str],
    ahead: Callable[[str], str],
) -> int:
    """Serve one request as a converter program: read it, convert, write the file, print the reply; return the exit status.

    Args:
        program: Name of the program in messages.
        handle: Returns the file's content and the reply. It imports the toolchain itself, so that a missing package is reported.
        extra: Returns the extra of edgecompress that installs the toolchain for a request.
        ahead: Returns the module whose import loads a route's toolchain; it is imported before the request where the caller names a route.
    """

    def convert_and_write(request: ConversionRequest) -> ConversionReply:
        started = time.monotonic()
        content, reply = handle(request)
        sys.stderr.write(f"{program}: {len(content)} bytes after {time.monotonic() - started:.1f} s\n")
        _write_file(Path(request.output), content)
        return reply

    gc.disable()  # a fifth of a small conversion went into looking for garbage; this process ends after one, and its memory is watched
    return answer_request(program, convert_and_write, ConversionRequest, extra=extra, ahead=ahead)


def answer_request(
    program: str, handle: Callable[[Q], Record], kind: type[Q], *, extra: Callable[[Q], str], ahead: Callable[[str], str] = str
) -> int:
    """Answer one request as a program that `run_program` starts: read a `kind`, print the reply of `handle`; return the exit status."""
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the toolchain prints, from Python or C++, goes to the log
    asked = None
    for route in sys.argv[1:]:
        with suppress(Exception):  # `handle` runs into the same error, and reports it
            import_module(ahead(route))
    try:
        asked = from_json(sys.stdin.buffer.read(REQUEST_BYTES), kind, source=f"{program}: standard input")
        line, code = msgspec.json.encode(handle(asked)).decode(), 0
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        line = json.dumps({"error": str(error), "package": package, "extra": extra(asked) if asked else ""})
        code = MISSING_PACKAGE
    except EdgeCompressError as error:
        line, code = json.dumps({"error": STYLES.sub("", str(error))}), error.exit_code
    reply_to.write(line + "\n")
    reply_to.close()
    gc.freeze()  # the interpreter would search all modules for garbage before it ends, for a second
    return code


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise files.explain_write_error(error, path) from error
