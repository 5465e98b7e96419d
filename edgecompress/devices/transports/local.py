"""The machine that edgecompress runs on, `local://`."""

import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgecompress.devices.device import CompletedCommand, DeviceBase, oversize_error
from edgecompress.devices.probe import probe_device
from edgecompress.devices.transports import process
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.files import explain_write_error
from edgecompress.records import DeviceInfo


class LocalDevice(DeviceBase):
    """This machine. Use `open_local`."""

    def __init__(self) -> None:
        self.url = "local://"
        self.serial = platform.node() or "localhost"
        self.python = sys.executable
        self.base = PurePosixPath(tempfile.gettempdir())

    def info(self) -> DeviceInfo:
        return probe_device(self)

    def push(self, local: Path, remote: PurePosixPath) -> None:
        target = Path(remote)
        try:
            shutil.copyfile(local, target)
            target.chmod(0o755)
        except OSError as error:
            raise explain_write_error(error, target) from error

    def pull(self, remote: PurePosixPath, local: Path, *, max_bytes: int) -> None:
        source = Path(remote)
        try:
            size = source.stat().st_size
        except OSError as error:
            raise DeviceError(f"{self.url}: {remote} is not there: {error.strerror}; run it again") from error
        if size > max_bytes:
            raise oversize_error(self.url, remote, size, max_bytes)
        try:
            shutil.copyfile(source, local)
        except OSError as error:
            raise explain_write_error(error, local) from error

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        return process.run_program(argv, timeout_s=timeout_s, subject=self.url)


def open_local(rest: str) -> LocalDevice:
    """Return this machine.

    Raises:
        ConfigError: Something follows `local://`.
    """
    if rest:
        raise ConfigError(f"local://{rest}: local:// takes nothing behind it; use ssh://{rest} for another machine")
    return LocalDevice()
