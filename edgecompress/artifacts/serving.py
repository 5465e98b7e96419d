"""The side of a converter program in the contract of converters/README.md: read requests, keep standard output for the replies.

Each line of standard input is a request, each line of standard output its reply; the toolchain may print anything, which goes to the log. A
program serves requests until its input ends, so that files of one format share the seconds that loading a toolchain takes. A request that
fails ends it: the exit status tells the class of the error, and no later request meets what the failure has left.
"""

import ctypes
import gc
import json
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Final, TypeVar

import msgspec

from edgecompress import files
from edgecompress.errors import EdgeCompressError
from edgecompress.records import ConversionReply, ConversionRequest, Record, from_json

MISSING_PACKAGE: Final = 20
REQUEST_BYTES: Final = 1 << 20
IDLE_S: Final = 0.2  # the caller checks a file for longer than this before it sends the next request
PARENT_POLL_S: Final = 1.0
STYLES: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours and cursor movements, for a terminal

Q = TypeVar("Q", bound=Record)


class Failure(msgspec.Struct):
    """The line that a program prints instead of a reply. `package` and `extra` are set where an import failed."""

    error: str
    package: str = ""
    extra: str = ""


def serve_conversion(
    program: str,
    handle: Callable[[ConversionRequest], tuple[bytes, ConversionReply]],
    *,
    extra: Callable[[ConversionRequest], str],
    ahead: Callable[[str], str],
) -> int:
    """Serve requests as a converter program: read each, convert, write the file, print the reply; return the exit status.

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

    gc.disable()  # a fifth of a small conversion went into looking for garbage; it is done between requests, and memory is watched
    return answer_requests(program, convert_and_write, ConversionRequest, extra=extra, ahead=ahead)


def answer_requests(
    program: str, handle: Callable[[Q], Record], kind: type[Q], *, extra: Callable[[Q], str], ahead: Callable[[str], str] = str
) -> int:
    """Answer requests as a program that `start_program` starts: read a `kind`, print the reply of `handle`, until the input ends.

    Returns:
        The exit status: 0 at the end of the input, that of the error after a request that failed.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the toolchain prints, from Python or C++, goes to the log
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    for route in sys.argv[1:]:
        with suppress(Exception):  # `handle` runs into the same error, and reports it
            import_module(ahead(route))
    gc.freeze()  # modules are no garbage, and there are many
    code = 0
    while not code and (message := _read_request(sys.stdin.buffer)):
        line, code = _answer(program, message, handle, kind, extra)
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # what C++ has printed belongs to this request's log
        replies.write(line + "\n")
        replies.flush()
    gc.freeze()  # the interpreter would search all modules for garbage before it ends, for a second
    return code


def _read_request(stdin: IO[bytes]) -> bytes:
    """Return the next request, b"" at the end of the input; what the last one has left is removed while nothing else is to be done."""
    if not select.select([stdin], [], [], IDLE_S)[0]:
        gc.collect()
    return stdin.readline(REQUEST_BYTES)


def _answer(program: str, message: bytes, handle: Callable[[Q], Record], kind: type[Q], extra: Callable[[Q], str]) -> tuple[str, int]:
    """Return the line that answers a request, and the exit status that it stands for."""
    asked = None
    try:
        asked = from_json(message, kind, source=f"{program}: standard input")
        return msgspec.json.encode(handle(asked)).decode(), 0
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        return json.dumps({"error": str(error), "package": package, "extra": extra(asked) if asked else ""}), MISSING_PACKAGE
    except EdgeCompressError as error:
        return json.dumps({"error": STYLES.sub("", str(error))}), error.exit_code


def _end_with_parent(parent: int) -> None:
    """End this program and all that it started when its caller has died, even by a signal that the caller could not handle."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise files.explain_write_error(error, path) from error
