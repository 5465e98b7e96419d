"""Any machine with an ssh server, `ssh://user@host:port`, by asyncssh with strict host keys.

`~/.ssh/config`, the agent and `known_hosts` are respected; a password is never asked for. asyncssh runs in a thread of its own, so that the
functions of a device also work inside a notebook, whose main thread already runs an event loop.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgecompress.devices.device import (
    LINK_MARGIN_S,
    CommandTimeout,
    CompletedCommand,
    DeviceBase,
    LinkLost,
    build_remote_command,
    oversize_error,
    timeout_error,
    transfer_timeout_s,
)
from edgecompress.devices.probe import probe_device
from edgecompress.devices.text import MAX_OUTPUT_BYTES, sanitize
from edgecompress.devices.transports.ssh_address import SshAddress, parse_ssh_address
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.files import explain_write_error
from edgecompress.records import DeviceInfo

try:
    import asyncssh
except ImportError as error:
    raise DeviceError("ssh: asyncssh is not installed; pip install 'edgecompress[devices]'") from error

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 5.0
KEEPALIVE_COUNT = 3
MIN_BYTES_PER_S = 200_000  # any usable link carries more
SIGNALS = {"ABRT": 6, "BUS": 7, "FPE": 8, "HUP": 1, "ILL": 4, "INT": 2, "KILL": 9, "PIPE": 13, "QUIT": 3, "SEGV": 11, "TERM": 15}
CHUNK_BYTES = 1 << 16
USUAL_KEYS = tuple(f"~/.ssh/id_{kind}" for kind in ("ed25519_sk", "ecdsa_sk", "ed448", "ed25519", "ecdsa", "rsa", "dsa"))
LINK_ERRORS = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)


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
        try:
            self._connection = self._open_connection()
        except BaseException:
            self._stop_loop()
            raise
        peer = self._connection.get_extra_info("peername") or (address.host, address.port)
        self.serial = f"{address.host}:{peer[1]}"

    def info(self) -> DeviceInfo:
        return probe_device(self)

    def push(self, local: Path, remote: PurePosixPath) -> None:
        self._wait_for(
            self._push_file(local, remote),
            timeout_s=transfer_timeout_s(local.stat().st_size, MIN_BYTES_PER_S),
            action=f"copying {local.name}",
        )

    def pull(self, remote: PurePosixPath, local: Path, *, max_bytes: int) -> None:
        self._wait_for(
            self._pull_file(remote, local, max_bytes),
            timeout_s=transfer_timeout_s(max_bytes, MIN_BYTES_PER_S),
            action=f"fetching {remote.name}",
        )

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        log.debug("%s run %s", self.url, argv)
        done = self._wait_for(self._run_command(argv, timeout_s), timeout_s=timeout_s + LINK_MARGIN_S, action=f"running {argv[0]}")
        if done.returncode == 124:
            raise timeout_error(self.url, argv, timeout_s)
        return done

    def reconnect(self) -> None:
        self._loop.call_soon_threadsafe(self._connection.abort)
        self._connection = self._open_connection()

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(DeviceError):
                self._wait_for(self._close_connection(), timeout_s=CONNECT_TIMEOUT_S, action="closing")
            self._stop_loop()

    def _open_connection(self) -> asyncssh.SSHClientConnection:
        connecting = _connect_ssh(self.url, self._address)
        return self._wait_for(connecting, timeout_s=2 * CONNECT_TIMEOUT_S, action="connecting")

    async def _push_file(self, local: Path, remote: PurePosixPath) -> None:
        async with self._connection.start_sftp_client() as sftp:
            try:
                await sftp.put(str(local), str(remote))
                await sftp.chmod(str(remote), 0o755)
            except LINK_ERRORS:
                raise
            except asyncssh.SFTPError as error:
                # OpenSSH says only "Failure" for a full disk.
                said = sanitize(str(error), limit=300)
                raise DeviceError(
                    f"{self.url}: cannot write {remote}: {said}; is the disk there full? {await self._read_free_space()}"
                ) from error

    async def _read_free_space(self) -> str:
        with suppress(asyncssh.Error, OSError, TimeoutError):
            done = await self._run_command(["df", "-h", str(self.base)], 10.0)
            return done.stdout.strip().rpartition("\n")[2]
        return ""

    async def _pull_file(self, remote: PurePosixPath, local: Path, max_bytes: int) -> None:
        async with self._connection.start_sftp_client() as sftp:
            try:
                size = (await sftp.stat(str(remote))).size or 0
                if size > max_bytes:
                    raise oversize_error(self.url, remote, size, max_bytes)
                async with sftp.open(str(remote), "rb") as file:
                    data: bytes = await file.read(max_bytes)
            except LINK_ERRORS:
                raise
            except asyncssh.SFTPError as error:
                raise DeviceError(f"{self.url}: cannot read {remote}: {sanitize(str(error))}; run it again") from error
        try:
            local.write_bytes(data)
        except OSError as error:
            raise explain_write_error(error, local) from error

    async def _run_command(self, argv: Sequence[str], timeout_s: float) -> CompletedCommand:
        command = build_remote_command(argv, timeout_s=timeout_s)
        async with self._connection.create_process(command, stdin=asyncssh.DEVNULL, encoding=None) as process:
            stdout, stderr = await asyncio.gather(_read_stream(process.stdout, self.url), _read_stream(process.stderr, self.url))
            await process.wait_closed()
            returncode = process.returncode
        if process.exit_signal:
            returncode = -SIGNALS.get(process.exit_signal[0], 1)
        if returncode is None:
            raise LinkLost(f"{self.url}: the connection was lost while running {argv[0]}; check network and power, then run it again")
        return CompletedCommand(tuple(argv), returncode, stdout, stderr)

    async def _close_connection(self) -> None:
        self._connection.close()
        await self._connection.wait_closed()

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


async def _read_stream(stream: "asyncssh.SSHReader[bytes]", url: str) -> str:
    data = bytearray()
    while chunk := await stream.read(CHUNK_BYTES):
        data += chunk
        if len(data) > MAX_OUTPUT_BYTES:
            raise DeviceError(f"{url}: the command printed more than {MAX_OUTPUT_BYTES >> 20} MiB; is it the right program?")
    return sanitize(data.decode(errors="replace"))


class _HostKeyRecorder(asyncssh.SSHClient):
    """Record the host key that is not in known_hosts, for the message."""

    refused: asyncssh.SSHKey | None = None
    address: tuple[str, str, int] = ("", "", 0)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused, self.address = key, (host, addr, port)
        return False


async def _connect_ssh(url: str, address: SshAddress) -> asyncssh.SSHClientConnection:
    given: dict[str, Any] = {name: value for name, value in {"username": address.user, "port": address.port}.items() if value is not None}
    client = _HostKeyRecorder()
    known_hosts = await _find_known_hosts(url, address.host, given)
    try:
        return await asyncssh.connect(
            address.host,
            **given,
            known_hosts=known_hosts,
            client_factory=lambda: client,
            preferred_auth="publickey",
            password=None,
            connect_timeout=CONNECT_TIMEOUT_S,
            login_timeout=CONNECT_TIMEOUT_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _host_key_error(url, client, known_hosts, error) from error
    except asyncssh.PermissionDenied as error:
        remedy = "put your public key there (ssh-copy-id) or name the key in ~/.ssh/config; passwords are never asked for"
        raise DeviceError(f"{url}: the server refused our keys; {remedy}") from error
    except (asyncssh.Error, asyncssh.KeyImportError, asyncssh.ConfigParseError) as error:
        raise DeviceError(f"{url}: the ssh connection failed: {sanitize(str(error), limit=300)}; try `ssh -v` to the same host") from error
    except TimeoutError as error:
        raise DeviceError(f"{url}: no answer within {CONNECT_TIMEOUT_S:g} s; is it switched on and in this network?") from error
    except OSError as error:
        said = error.strerror or error
        raise DeviceError(f"{url}: cannot be reached: {said}; check the address, the port and that sshd runs there") from error


async def _find_known_hosts(url: str, host: str, given: dict[str, Any]) -> list[str] | bytes:
    """Return the known_hosts files that exist: those that ~/.ssh/config names, else the usual two; without one no key is trusted."""
    try:
        options = await asyncssh.SSHClientConnectionOptions.construct(host=host, **given)
    except (asyncssh.Error, asyncssh.KeyImportError, asyncssh.ConfigParseError, OSError) as error:
        raise ConfigError(f"{url}: ~/.ssh/config or a key it names cannot be used: {sanitize(str(error), limit=300)}; mend it") from error
    _check_key_modes([Path(str(name)).expanduser() for name in options.config.get("IdentityFile", None) or USUAL_KEYS])
    configured = options.known_hosts  # asyncssh turns `UserKnownHostsFile none` into None, which would trust every key
    files = [str(Path(name).expanduser()) for name in configured if isinstance(name, str)] if isinstance(configured, list | tuple) else []
    files = files or [str(Path.home() / ".ssh" / "known_hosts"), "/etc/ssh/ssh_known_hosts"]
    return [name for name in files if os.access(name, os.R_OK)] or b""


def _check_key_modes(keys: Sequence[Path]) -> None:
    """Refuse a private key that others may read, as ssh does and asyncssh does not."""
    for key in keys:
        if key.is_file() and (mode := key.stat().st_mode & 0o777) & 0o077:
            raise ConfigError(f"{key}: this private key has mode {mode:04o}, so others may read it; run `chmod 600 {key}`")


def _host_key_error(url: str, client: _HostKeyRecorder, known_hosts: list[str] | bytes, error: Exception) -> DeviceError:
    key, (host, addr, port) = client.refused, client.address
    if key is None or _is_revoked(key, known_hosts):
        said = sanitize(str(error), limit=300)
        return DeviceError(f"{url}: the host key is revoked in known_hosts, or malformed ({said}); do not connect, ask who revoked it")
    known = asyncssh.match_known_hosts(known_hosts, host, addr, port if port != 22 else None)[0]
    name = host if port == 22 else f"[{host}]:{port}"
    fingerprint = key.get_fingerprint()
    if known:
        return DeviceError(
            f"{url}: the host key has CHANGED, now {fingerprint}; someone may be in between, or it was reinstalled: "
            f"only if you know that it was, run `ssh-keygen -R '{name}'` and add the new key"
        )
    line = f"{name} {key.export_public_key().decode().strip()}"
    remedy = f"compare it with `ssh-keygen -lf` on the device, then add to ~/.ssh/known_hosts the line: {line}"
    return DeviceError(f"{url}: unknown host key {fingerprint}; {remedy}")


def _is_revoked(key: asyncssh.SSHKey, known_hosts: list[str] | bytes) -> bool:
    """Tell whether a line revokes this key; asyncssh overlooks a line for `[host]:port` where the host has no other line."""
    encoded = key.export_public_key().split()[1]
    lines = [line for name in known_hosts if isinstance(name, str) for line in Path(name).read_bytes().splitlines()]
    return any(line.startswith(b"@revoked") and encoded in line.split() for line in lines)


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
