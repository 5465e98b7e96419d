"""Run a converter program in a process of its own: both sides of the contract that converters/README.md describes.

The parent (`convert`) sends a JSON request and bounds what comes back; the program (`serve`) keeps its standard output for the reply
alone, so that a toolchain may print what it likes. TensorFlow and its kin load and crash over there. No torch is imported here.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from edgecompress import files
from edgecompress.errors import ConfigError, EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest, from_json

MISSING_PACKAGE = 20
REPLY_BYTES = 1 << 20
REQUEST_BYTES = 1 << 20
LOG_TAIL_LINES = 8
EXIT_CODES = {kind.exit_code: kind for kind in (EdgeCompressError, ConfigError, UnsupportedError, ToolchainError, ParityError)}


class _Failure(msgspec.Struct):
    """What a converter program prints instead of a reply. `package` and `extra` are set when an import failed."""

    error: str
    package: str = ""
    extra: str = ""


def convert(
    format: str,  # noqa: A002
    request: ConversionRequest,
    *,
    timeout_s: float = 900,
    python: str = sys.executable,
    log: Path | None = None,
) -> ConversionReply:
    """Convert by the program of `format` and leave the file at `request.output`; on any failure there is none.

    Args:
        log: Where everything the program and its toolchain print is kept.

    Raises:
        ConfigError: Unknown format, scheme or route, or the request's files are unusable.
        UnsupportedError: The format has no such op or scheme; says which.
        ToolchainError: A package is missing, the program crashed, was killed, took too long or answered nonsense.
    """
    from edgecompress.programs import converter

    argv = [python, str(converter(format))]
    with files.replacing(Path(request.output)) as temporary, tempfile.TemporaryDirectory(prefix="edgecompress-") as scratch:
        stderr = log or Path(scratch, "log")
        work = Path(scratch, "work")
        for folder in (work, stderr.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with Path(scratch, "stdout").open("w+b") as stdout, stderr.open("w+b") as printed:
            message = msgspec.json.encode(msgspec.structs.replace(request, output=str(temporary)))
            code = _run(argv, message, stdout=stdout, stderr=printed, cwd=work, timeout_s=timeout_s)
            last = _last_line(stdout)
            tail = _tail(printed)
        if code != 0:
            raise _error(code, last, tail, argv)
        reply = _reply(last, argv, tail)
        if not temporary.stat().st_size:
            raise ToolchainError(f"{_said(argv)}: reported success and wrote an empty file; its log ends: {tail}")
    return reply


def _run(argv: list[str], message: bytes, *, stdout: IO[bytes], stderr: IO[bytes], cwd: Path, timeout_s: float) -> int:
    # Without PYTHONSAFEPATH, which would hide the modules beside the program.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment = inherited | {"PYTHONHASHSEED": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, cwd=cwd, env=environment, start_new_session=True
        )
    except OSError as error:
        raise ToolchainError(f"{argv[0]}: cannot be started ({error.strerror}); give the path of a Python 3.11 or newer") from error
    try:
        process.communicate(message, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{_said(argv)}: not finished after {timeout_s:g} s and was stopped; allow more with timeout_s") from error
    finally:
        # Also on Ctrl-C, and after success: nothing the toolchain started outlives the call.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


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
    return Path(argv[1]).name


def _error(code: int, last: bytes, tail: str, argv: list[str]) -> EdgeCompressError:
    """Return the error for a program that did not exit with 0."""
    command = " ".join(argv)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return ToolchainError(f"{_said(argv)}: died by {name}{why}; command: {command}; its log ends: {tail}")
    try:
        failure = msgspec.json.decode(last, type=_Failure)
    except msgspec.MsgspecError:
        return ToolchainError(f"{_said(argv)}: exit status {code}; command: {command}; its log ends: {tail}")
    if code == MISSING_PACKAGE:
        install = f"pip install 'edgecompress[{failure.extra}]'" if failure.extra else "pip install edgecompress"
        return ToolchainError(f"{_said(argv)}: {failure.package} is not installed for {argv[0]}; {install}")
    kind = EXIT_CODES.get(code, ToolchainError)
    return kind(failure.error if kind is not ToolchainError else f"{failure.error}; command: {command}; its log ends: {tail}")


def _reply(last: bytes, argv: list[str], tail: str) -> ConversionReply:
    try:
        return from_json(last, ConversionReply, source=_said(argv))
    except ConfigError as error:
        raise ToolchainError(f"{_said(argv)}: its last line is no reply ({last[:80]!r}); its log ends: {tail}") from error


def serve(
    program: str, handle: Callable[[ConversionRequest], tuple[bytes, ConversionReply]], *, extra: Callable[[ConversionRequest], str]
) -> int:
    """Be a converter program: read a request, convert, write the file, print the reply; return the exit status.

    Args:
        program: Its name in messages.
        handle: Returns the file's content and the reply. Imports its toolchain itself, so that a missing package is reported.
        extra: The extra of edgecompress that holds the toolchain for a request.
    """
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the toolchain prints, from Python or C++, goes to the log
    asked = None
    try:
        asked = from_json(sys.stdin.buffer.read(REQUEST_BYTES), ConversionRequest, source=f"{program}: standard input")
        started = time.monotonic()
        content, reply = handle(asked)
        sys.stderr.write(f"{program}: {len(content)} bytes after {time.monotonic() - started:.1f} s\n")
        line, code = msgspec.json.encode(reply).decode(), 0
        _write(Path(asked.output), content)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        line = json.dumps({"error": str(error), "package": package, "extra": extra(asked) if asked else ""})
        code = MISSING_PACKAGE
    except EdgeCompressError as error:
        line, code = json.dumps({"error": str(error)}), error.exit_code
    answer.write(line + "\n")
    answer.close()
    return code


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise files.explain(error, path) from error
