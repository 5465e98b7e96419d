"""Open an ssh connection, through its jump hosts, and say why one cannot be opened. The host key of each is checked."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from edgecompress.devices.text import sanitize
from edgecompress.devices.transports.ssh_address import SshAddress
from edgecompress.devices.transports.ssh_config import SshSettings, is_encrypted, is_private_key, read_ssh_settings
from edgecompress.errors import ConfigError, DeviceError

CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 5.0
KEEPALIVE_COUNT = 3


@dataclass(frozen=True, slots=True)
class SshLink:
    """An open connection and the port by which its host was reached, from the jump host where there is one."""

    connection: asyncssh.SSHClientConnection
    port: int


class _HostKeyRecorder(asyncssh.SSHClient):
    """Record the host key that is not in known_hosts, for the message."""

    refused: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused = key
        return False


async def connect_ssh(
    url: str, address: SshAddress, *, tunnel: asyncssh.SSHClientConnection | None = None, through: tuple[SshAddress, ...] = ()
) -> SshLink:
    """Return a connection to `address`, through `tunnel` or else through the jump hosts that ~/.ssh/config names.

    Args:
        url: The first words of messages.
        through: The hosts for whose sake this one is connected to.

    Raises:
        ConfigError: ~/.ssh/config cannot be followed.
        DeviceError: The host or a jump host cannot be reached, its key is unknown or changed, or it refuses our keys.
    """
    settings = await read_ssh_settings(url, address)
    jump_name = ""
    opened = tunnel
    try:
        for jump in settings.jumps if tunnel is None else ():
            jump_name = jump.host
            if jump in (address, *through):
                raise ConfigError(
                    f"{url}: ProxyJump leads in a circle at {jump.host}; leave that host out in ~/.ssh/config (`Host * !{jump.host}`)"
                )
            reached = await connect_ssh(f"{url}: jump host {jump.host}", jump, tunnel=opened, through=(address, *through))
            opened = reached.connection
        connection = await _connect_directly(url, address, settings, opened, jump_name)
    except BaseException:
        if opened is not None and opened is not tunnel:
            opened.abort()
        raise
    if opened is not None:
        connection.set_tunnel(opened)  # is closed with the connection
    return SshLink(connection, settings.port)


async def _connect_directly(
    url: str, address: SshAddress, settings: SshSettings, tunnel: asyncssh.SSHClientConnection | None, jump_name: str
) -> asyncssh.SSHClientConnection:
    client = _HostKeyRecorder()
    try:
        return await asyncssh.connect(
            address.host,
            **settings.arguments,
            tunnel=tunnel,
            known_hosts=lambda *_: settings.find_known_keys(),
            client_factory=lambda: client,
            preferred_auth="publickey",
            password=None,
            agent_forwarding=False,
            connect_timeout=CONNECT_TIMEOUT_S,
            login_timeout=CONNECT_TIMEOUT_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _host_key_error(url, client.refused, settings, error) from error
    except asyncssh.PermissionDenied as error:
        raise DeviceError(f"{url}: the server refused our keys; {await _find_key_remedy(settings)}") from error
    except asyncssh.ChannelOpenError as error:
        said = sanitize(str(error), limit=300)
        remedy = "check that it is switched on and that the jump host may forward there"
        raise DeviceError(f"{url}: cannot be reached from the jump host {jump_name}: {said}; {remedy}") from error
    except (asyncssh.KeyImportError, asyncssh.ConfigParseError, ValueError) as error:
        raise ConfigError(
            f"{url}: ~/.ssh/config, known_hosts or a key cannot be used: {sanitize(str(error), limit=300)}; mend it"
        ) from error
    except asyncssh.Error as error:
        raise DeviceError(f"{url}: the ssh connection failed: {sanitize(str(error), limit=300)}; try `ssh -v` to the same host") from error
    except TimeoutError as error:
        raise DeviceError(f"{url}: no answer within {CONNECT_TIMEOUT_S:g} s; is it switched on and in this network?") from error
    except OSError as error:
        said = error.strerror or str(error)
        raise DeviceError(f"{url}: cannot be reached: {said}; check the address, the port and that sshd runs there") from error


async def _find_key_remedy(settings: SshSettings) -> str:
    """Return what to do where the server refused our keys: unlock one, mend a name in ~/.ssh/config, or install one there."""
    locked = [key for key in settings.keys if is_private_key(key) and is_encrypted(key)]
    if locked and (missing := await _find_unheld(locked, settings.agent)):
        return f"{missing[0]} is encrypted and no agent holds it; run `ssh-add {missing[0]}`, passwords are never asked for"
    if settings.missing_keys:
        return f"{settings.missing_keys[0]}, which ~/.ssh/config names, does not exist; mend its name, passwords are never asked for"
    return "put your public key there (ssh-copy-id) or name the key in ~/.ssh/config; passwords are never asked for"


async def _find_unheld(keys: list[Path], agent_path: str) -> list[Path]:
    """Return the keys whose public part the agent does not have."""
    held: set[bytes] = set()
    try:
        if agent_path:
            async with await asyncssh.connect_agent(agent_path) as agent:
                held = {pair.public_data for pair in await asyncio.wait_for(agent.get_keys(), CONNECT_TIMEOUT_S)}
    except (OSError, ValueError, asyncssh.Error):
        pass  # an agent that does not answer holds nothing
    return [key for key in keys if _read_public_data(key) not in held]


def _read_public_data(key: Path) -> bytes:
    try:
        return asyncssh.read_public_key(key.with_name(f"{key.name}.pub")).public_data
    except (OSError, asyncssh.KeyImportError):
        return b""


def _host_key_error(url: str, key: asyncssh.SSHKey | None, settings: SshSettings, error: Exception) -> DeviceError:
    if key is None or _is_revoked(key, settings.known_hosts):
        said = sanitize(str(error), limit=300)
        return DeviceError(f"{url}: the host key is revoked in known_hosts, or malformed ({said}); do not connect, ask who revoked it")
    fingerprint, name = key.get_fingerprint(), settings.known_name
    if settings.find_known_keys()[0]:
        return DeviceError(
            f"{url}: the host key has CHANGED, now {fingerprint}; someone may be in between, or it was reinstalled: "
            f"only if you know that it was, run `ssh-keygen -R '{name}'` and add the new key"
        )
    line = f"{name} {key.export_public_key().decode().strip()}"
    place = settings.hosts_file.replace(f"{Path.home()}/", "~/", 1) or "~/.ssh/known_hosts, and let UserKnownHostsFile name that file,"
    remedy = f"compare it with `ssh-keygen -lf` on the device, then add to {place} the line: {line}"
    return DeviceError(f"{url}: unknown host key {fingerprint}; {remedy}")


def _is_revoked(key: asyncssh.SSHKey, known_hosts: tuple[str, ...]) -> bool:
    """Tell whether a line revokes this key; asyncssh overlooks a line for `[host]:port` where the host has no other line."""
    encoded = key.export_public_key().split()[1]
    lines = [line for name in known_hosts for line in Path(name).read_bytes().splitlines()]
    return any(line.startswith(b"@revoked") and encoded in line.split() for line in lines)
