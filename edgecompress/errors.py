"""Everything edgecompress raises on purpose.

EdgeCompressError (exit code 1)
├── ConfigError       (2)  what the user gave is wrong
├── UnsupportedError  (3)  this layer, op or scheme cannot be handled here
├── ToolchainError    (4)  a converter is missing or failed
├── ParityError       (5)  the artifact disagrees with the model
└── DeviceError       (6)  a device is unreachable or a command failed there

A message reads `subject: fact; remedy`. Programming mistakes keep their traceback.
"""

from typing import ClassVar


class EdgeCompressError(Exception):
    """Base class. The CLI prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class ConfigError(EdgeCompressError):
    exit_code = 2


class UnsupportedError(EdgeCompressError):
    exit_code = 3


class ToolchainError(EdgeCompressError):
    exit_code = 4


class ParityError(EdgeCompressError):
    exit_code = 5


class DeviceError(EdgeCompressError):
    exit_code = 6
