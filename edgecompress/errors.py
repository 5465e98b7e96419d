"""The exceptions that edgecompress raises on purpose.

EdgeCompressError (exit code 1)
├── ConfigError       (2)  an input, an option or a recipe is wrong
├── UnsupportedError  (3)  this layer, op or scheme cannot be handled here
├── ToolchainError    (4)  a converter is missing or failed
├── ParityError       (5)  the artifact disagrees with the model
├── FidelityError     (5)  compression lost more of the dense network than may be lost
└── DeviceError       (6)  a device is unreachable or a command failed there

A message reads `subject: fact; remedy`. Programming mistakes keep their traceback.
"""

import re
from typing import ClassVar


class EdgeCompressError(Exception):
    """Base of all errors; the command line prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class ConfigError(EdgeCompressError):
    """An input, an option or a recipe of the user is wrong."""

    exit_code = 2


class UnsupportedError(EdgeCompressError):
    """A layer, an op or a scheme cannot be handled here."""

    exit_code = 3


class ToolchainError(EdgeCompressError):
    """A converter is missing or failed."""

    exit_code = 4


class ParityError(EdgeCompressError):
    """An artifact disagrees with its model."""

    exit_code = 5


class FidelityError(EdgeCompressError):
    """A compressed network, or its file, keeps too little of the dense network."""

    exit_code = 5


class DeviceError(EdgeCompressError):
    """A device is unreachable, or a command failed there."""

    exit_code = 6


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that holds a word, or the name of the error's class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if re.search(r"\w", line)), type(error).__name__)[:300]
