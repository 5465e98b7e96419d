"""Make text that came from a device safe to show and short enough for a message."""

import re
from typing import Final

MAX_OUTPUT_BYTES: Final = 4 << 20


def sanitize(text: str, *, limit: int = MAX_OUTPUT_BYTES) -> str:
    """Return `text` without control, escape and bidirectional characters: a device must not draw on the user's terminal.

    Newlines and tabs are kept, also where a terminal there writes them as CR LF; everything else unprintable becomes "?"; at most `limit`
    characters.
    """
    text = re.sub(r"\r+\n", "\n", text)
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text[:limit])


def join_last_lines(text: str, *, lines: int = 3) -> str:
    """Return the last lines of a command's output as one line of at most 500 characters."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])[-500:]
