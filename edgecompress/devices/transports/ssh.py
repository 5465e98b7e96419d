"""Any machine with an ssh server, `ssh://user@host:port`, by asyncssh with strict host keys.

`~/.ssh/config`, the agent and `known_hosts` are respected (see `ssh_config`); a password is never asked for. Files go through `cat`, which
every board has, and not through SFTP, which some lack. asyncssh runs in a thread of its own, so that the functions of a device also work
inside a notebook, whose main thread already runs an event loop.
"""

import asyncio
import logging
import secrets
import shlex
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgecompress.devices.device import (
    FIND_TIMEOUT_SCRIPT,
    LINK_MARGIN_S,
    CommandTimeout,
    CompletedCommand,
    DeviceBase,
    LinkLost,
    find_refusal_remedy,
    is_late,
    limit_command,
    oversize_error,
    parse_timeout_form,
    timeout_error,
    transfer_timeout_s,
)
from edgecompress.devices.probe import probe_device
from edgecompress.devices.text import MAX_OUTPUT_BYTES, join_last_lines, sanitize
from edgecompress.devices.transports.ssh_address import SshAddress, parse_ssh_address
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.files import explain_write_error
from edgecompress.records import DeviceInfo

try:
    import asyncssh
except ImportError as error:
    raise DeviceError("ssh: asyncssh is not installed; pip install 'edgecompress[devices]'") from error

from edgecompress.devices.transports.ssh_connection import CONNECT_TIMEOUT_S, SshLink, connect_ssh

log = logging.getLogger(__name__)
T = TypeVar("T")

COMMAND_TIMEOUT_S = 20.0
MIN_BYTES_PER_S = 200_000  # any usable link carries more
SIGNALS = {"ABRT": 6, "BUS": 7, "FPE": 8, "HUP": 1, "ILL": 4, "INT": 2, "KILL": 9, "PIPE": 13, "QUIT": 3, "SEGV": 11, "TERM": 15}
CHUNK_BYTES = 1 << 16
# Prints a mark on both outputs before the command's own: what stands before it was printed by the start-up files of the login shell.
MARKED_SCRIPT = 'printf %s "$0"; printf %s "$0" >&2; exec "$@"'
WRITE_SCRIPT = 'cat >"$1" && chmod 755 "$1"'
SIZE_SCRIPT = '[ -f "$1" ] && exec wc -c <"$1"'  # a link to /dev/zero would be counted for ever


class SshDevice(DeviceBase):
    """A machine with an open ssh connection. Use `open_ssh`."""

    def __init__(self, url: str, address: SshAddress) -> None:
        self.url = url
        self.python = "python3"
        self.base = PurePosixPath("/tmp")  # noqa: S108 - work folders inside are made private and must not exist before
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"ssh {address.host}", daemon=True)
        self._thread.start()
        self._address = address
        self._timeout_form: tuple[str, ...] | None = None  # found out at the first command
        try:
            self._link = self._open_link()
        except BaseException:
            self._stop_loop()
            raise
        # Not the port of the peer: behind a jump host the peer is that host, which all boards behind it share.
        self.serial = f"{address.host.lower()}:{self._link.port}"

    def info(self) -> DeviceInfo:
        return probe_device(self)

    def push(self, local: Path, remote: PurePosixPath) -> None:
        timeout_s = transfer_timeout_s(local.stat().st_size, MIN_BYTES_PER_S)
        self._wait_for(self._push_file(local, remote, timeout_s), timeout_s=timeout_s + LINK_MARGIN_S, action=f"copying {local.name}")

    def pull(self, remote: PurePosixPath, local: Path, *, max_bytes: int) -> None:
        timeout_s = transfer_timeout_s(max_bytes, MIN_BYTES_PER_S)
        pulling = self._pull_file(remote, local, max_bytes, timeout_s)
        self._wait_for(pulling, timeout_s=timeout_s + LINK_MARGIN_S, action=f"fetching {remote.name}")

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        log.debug("%s run %s", self.url, argv)
        return self._wait_for(self._run_command(argv, timeout_s), timeout_s=timeout_s + LINK_MARGIN_S, action=f"running {argv[0]}")

    def reconnect(self) -> None:
        self._loop.call_soon_threadsafe(self._link.connection.abort)
        self._link = self._open_link()

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(DeviceError):
                self._wait_for(self._close_connection(), timeout_s=CONNECT_TIMEOUT_S, action="closing")
            self._stop_loop()

    def _open_link(self) -> SshLink:
        return self._wait_for(connect_ssh(self.url, self._address), timeout_s=2 * CONNECT_TIMEOUT_S, action="connecting")

    async def _push_file(self, local: Path, remote: PurePosixPath, timeout_s: float) -> None:
        status, _, stderr = await self._run_limited(["sh", "-c", WRITE_SCRIPT, "sh", str(remote)], timeout_s, source=local)
        if status != 0:
            said = join_last_lines(stderr) or f"exit status {status}"
            raise DeviceError(f"{self.url}: cannot write {remote}: {said}; {find_refusal_remedy(said) or 'check the disk there'}")

    async def _pull_file(self, remote: PurePosixPath, local: Path, max_bytes: int, timeout_s: float) -> None:
        told = await self._run_command(["sh", "-c", SIZE_SCRIPT, "sh", str(remote)], COMMAND_TIMEOUT_S)
        text = told.stdout.strip()
        size = int(text) if told.returncode == 0 and text.isdecimal() and len(text) < 16 else 0
        if size > max_bytes:
            raise oversize_error(self.url, remote, size, max_bytes)
        status, data, stderr = await self._run_limited(["cat", str(remote)], timeout_s, max_bytes=size)
        if status != 0 or len(data) != size:
            said = join_last_lines(stderr) or f"{len(data)} bytes came, {size} were told"
            raise DeviceError(f"{self.url}: cannot read {remote}: {said}; run it again")
        try:
            local.write_bytes(data)
        except OSError as error:
            raise explain_write_error(error, local) from error

    async def _run_command(self, argv: Sequence[str], timeout_s: float) -> CompletedCommand:
        status, stdout, stderr = await self._run_limited(argv, timeout_s)
        if len(stdout) > MAX_OUTPUT_BYTES:
            raise _too_much_output(self.url)
        return CompletedCommand(tuple(argv), status, sanitize(stdout.decode(errors="replace")), stderr)

    async def _run_limited(
        self, argv: Sequence[str], timeout_s: float, *, source: Path | None = None, max_bytes: int = MAX_OUTPUT_BYTES
    ) -> tuple[int, bytes, str]:
        """Run a command that the board itself ends when its time is up; see `_exchange`."""
        if self._timeout_form is None:
            _, told, _ = await self._exchange(["sh", "-c", FIND_TIMEOUT_SCRIPT])
            self._timeout_form = parse_timeout_form(told.decode(errors="replace"))
        began = time.monotonic()
        limited = limit_command(argv, timeout_s=timeout_s, form=self._timeout_form)
        status, output, errors = await self._exchange(limited, source=source, max_bytes=max_bytes)
        if is_late(status, time.monotonic() - began, timeout_s):
            raise timeout_error(self.url, argv, timeout_s)
        return status, output, errors

    async def _exchange(
        self, argv: Sequence[str], *, source: Path | None = None, max_bytes: int = MAX_OUTPUT_BYTES
    ) -> tuple[int, bytes, str]:
        """Run a command with a file as its input; return its status, its output and its error output, both without what came before."""
        mark = f"edgecompress:{secrets.token_hex(8)}:"
        command = shlex.join(["sh", "-c", MARKED_SCRIPT, mark, *argv])
        stdin = asyncssh.DEVNULL if source is None else str(source)
        # A terminal or an agent that ~/.ssh/config asks for is for people: one changes the output, the other trusts the device.
        async with self._link.connection.create_process(command, stdin=stdin, encoding=None, request_pty=False) as process:
            stdout, stderr = await asyncio.gather(
                _read_stream(process.stdout, self.url, max_bytes), _read_stream(process.stderr, self.url, MAX_OUTPUT_BYTES)
            )
            await process.wait_closed()
            status = process.returncode
        if process.exit_signal:
            status = -SIGNALS.get(process.exit_signal[0], 1)
        if status is None:
            raise LinkLost(f"{self.url}: the connection was lost while running {argv[0]}; check network and power, then run it again")
        before, found, output = stdout.partition(mark.encode())
        if not found:
            said = join_last_lines(sanitize((stderr or before).decode(errors="replace"))) or "nothing"
            remedy = "log in as a user with a POSIX shell and without a forced command"
            raise DeviceError(
                f"{self.url}: the login shell there did not run the command (exit status {status}), it said: {said}; {remedy}"
            )
        _, _, errors = stderr.rpartition(mark.encode())
        return status, output, sanitize(errors.decode(errors="replace"))

    async def _close_connection(self) -> None:
        self._link.connection.close()
        await self._link.connection.wait_closed()

    def _wait_for(self, work: Coroutine[Any, Any, T], *, timeout_s: float, action: str) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)  # the time limit of asyncio would wait until a silent link is closed in good order
        except TimeoutError as error:
            raise CommandTimeout(f"{self.url}: {action} took more than {timeout_s:g} s; check the connection") from error
        except (asyncssh.Error, OSError) as error:
            raise LinkLost(
                f"{self.url}: the connection was lost while {action}: {sanitize(str(error), limit=300)}; run it again"
            ) from error
        finally:
            future.cancel()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONNECT_TIMEOUT_S)
        self._loop.close()


async def _read_stream(stream: "asyncssh.SSHReader[bytes]", url: str, max_bytes: int) -> bytes:
    """Return the output of a command; start-up files may print as much as a command before `max_bytes`."""
    data = bytearray()
    while chunk := await stream.read(CHUNK_BYTES):
        data += chunk
        if len(data) > max_bytes + MAX_OUTPUT_BYTES:
            raise _too_much_output(url)
    return bytes(data)


def _too_much_output(url: str) -> DeviceError:
    return DeviceError(f"{url}: the command printed more than {MAX_OUTPUT_BYTES >> 20} MiB; is it the right program?")


def open_ssh(rest: str) -> SshDevice:
    """Connect to `user@host:port`; user and port may be left to ~/.ssh/config.

    Raises:
        ConfigError: The address is malformed, or has a password or a path.
        DeviceError: The host cannot be reached, its key is unknown or changed, or it refuses our keys.
    """
    url = f"ssh://{rest}"
    try:
        address = parse_ssh_address(rest)
    except ValueError as error:
        raise ConfigError(f"ssh://{rest.rpartition('@')[2]}: {error}") from error
    return SshDevice(url, address)
