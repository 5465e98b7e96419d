"""Find the files of a folder of images that cannot be read, before anything is computed from the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecompress.data.images import decode_image
from edgecompress.errors import ConfigError

# Whole sets up to these sizes are decoded; of larger ones the first and last bytes of each file are looked at, 30 µs a file.
DECODED_FILES: Final = 2_000
DECODED_BYTES: Final = 16_000_000
MAX_UNREADABLE: Final = 0.05  # of all files; more of them are no accident but another format, or a broken copy
FEW_UNREADABLE: Final = 3  # are left out of any set, however small
TAIL: Final = 4_096  # some cameras append data after the end of the image
# First bytes of a format, and the mark that a whole file has near its end.
MARKS: Final = ((b"\x89PNG\r\n\x1a\n", b"IEND"), (b"\xff\xd8\xff", b"\xff\xd9"), (b"GIF8", b"\x3b"))


def find_unreadable(files: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Return the images that cannot be read, with the reason.

    Raises:
        ConfigError: They are more than a few.
    """
    sizes = [file.stat().st_size if file.exists() else 0 for file in files]
    thorough = len(files) <= DECODED_FILES and sum(sizes) <= DECODED_BYTES
    found = {file: reason for file in files if (thorough or not _looks_whole(file)) and (reason := _explain_unreadable(file))}
    if len(found) > max(FEW_UNREADABLE, MAX_UNREADABLE * len(files)) or len(found) == len(files) > 0:
        first, reason = next(iter(found.items()))
        raise ConfigError(
            f"{folder}: {len(found)} of {len(files)} images cannot be read (first: {first.relative_to(folder)}: {reason}); "
            "replace or remove them"
        )
    return found


def _explain_unreadable(file: Path) -> str:
    """Return why an image cannot be decoded; "" for one that can."""
    try:
        decode_image(file, subject=str(file))
    except ConfigError as error:
        return str(error).removeprefix(f"{file}: ").partition(";")[0]
    return ""


def _looks_whole(file: Path) -> bool:
    """Whether a file begins and ends as an image of a common format does; a file that does not may still be an image."""
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
            opened.seek(max(0, file.stat().st_size - TAIL))
            tail = opened.read()
    except OSError:
        return False
    return any(head.startswith(first) and last in tail for first, last in MARKS)
