"""Write files so that a reader sees each of them whole or not at all."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecompress.errors import ConfigError, EdgeCompressError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move the file to `path` when the block succeeds, remove it otherwise.

    Raises:
        EdgeCompressError: The disk is full.
        ConfigError: The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise explain_write_error(error, path) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise explain_write_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def hash_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_files(path: Path) -> list[tuple[str, int, int]]:
    """Return name, bytes and time of change of a file, or of every file in a folder: a cheap sign that contents changed."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [(str(file.relative_to(path)), status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]


def explain_write_error(error: OSError, path: Path) -> EdgeCompressError:
    """Return the error for a failed write to `path`, with its remedy."""
    if error.errno in NO_SPACE:
        return EdgeCompressError(f"{path}: no space left on the device; free some and run the same command again, finished steps are kept")
    return ConfigError(f"{path}: cannot be written ({error.strerror or error}); choose another folder or mend its permissions")
