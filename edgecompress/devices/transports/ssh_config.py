"""Read what ~/.ssh/config says of a host, in one place: for the connection, for the checks of its host key, and for messages.

asyncssh parses the file: Host, Match, Include, and every option that decides about a connection. Where asyncssh departs from OpenSSH, the
functions here follow OpenSSH: a key that does not exist is passed over, an alias of a host key is looked up without its port, the usual
known_hosts are read beside the global ones, tokens stand in the names of known_hosts, and IdentityAgent may name a variable.
"""

import base64
import getpass
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncssh

from edgecompress.devices.text import sanitize
from edgecompress.devices.transports.ssh_address import SshAddress, parse_ssh_address
from edgecompress.errors import ConfigError

USUAL_KEYS: Final = tuple(f"~/.ssh/id_{kind}" for kind in ("ed25519_sk", "ecdsa_sk", "ed448", "ed25519", "ecdsa", "rsa", "dsa"))
USER_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_HOSTS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
DEFAULT_PORT: Final = 22
MAX_KEY_BYTES: Final = 1 << 20

# The lists of the host's own keys, of authorities and of revoked keys.
KnownKeys = tuple[Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey]]


@dataclass(frozen=True, slots=True)
class SshSettings:
    """The settings of one host.

    Attributes:
        known_name: The name that known_hosts has of the host.
        hosts_file: The file to which a new host key is to be added; "" where the configuration keeps none.
        known_hosts: The files of known_hosts that can be read.
        keys: The key files that exist, in the order in which they are tried.
        missing_keys: The key files that ~/.ssh/config names and that do not exist.
        agent: The socket of the agent; "" for none.
        jumps: The hosts of ProxyJump, the first one first.
        arguments: The arguments of `asyncssh.connect`.
    """

    port: int
    known_name: str
    hosts_file: str
    known_hosts: tuple[str, ...]
    keys: tuple[Path, ...]
    missing_keys: tuple[str, ...]
    agent: str
    jumps: tuple[SshAddress, ...]
    arguments: dict[str, Any]

    def find_known_keys(self) -> KnownKeys:
        """Return the keys that known_hosts has of this host by its name, as ssh looks them up; never by an IP address that a name has.

        Behind a jump host the address would be the jump host's own.
        """
        match = re.fullmatch(r"\[(.*)\]:(\d+)", self.known_name)
        name, port = (match[1], int(match[2])) if match else (self.known_name, None)
        found = asyncssh.match_known_hosts(list(self.known_hosts) or b"", name, "", port)
        return found[0], found[1], found[2]


async def read_ssh_settings(url: str, address: SshAddress) -> SshSettings:
    """Return the settings of a host.

    Raises:
        ConfigError: ~/.ssh/config is malformed or cannot be followed, or others may read a private key.
    """
    given: dict[str, Any] = {name: value for name, value in {"username": address.user, "port": address.port}.items() if value is not None}
    file = Path.home() / ".ssh" / "config"
    given["config"] = [str(file)] if os.access(file, os.R_OK) else []
    try:
        options = await asyncssh.SSHClientConnectionOptions.construct(host=address.host, client_keys=None, **given)
        if options.config.has_match_final():
            options.update(host=address.host, reload=True, canonical=False, final=True)
        config = options.config
        alias = options.host_key_alias
        tokens = {"h": options.host, "n": address.host, "k": alias or address.host, "p": str(options.port), "r": options.username}
        user_hosts = [_expand_path(name, tokens) for name in config.get("UserKnownHostsFile", USER_HOSTS)]
        global_hosts = [_expand_path(name, tokens) for name in config.get("GlobalKnownHostsFile", GLOBAL_HOSTS)]
        jumps = _parse_jumps(options.tunnel)
    except (asyncssh.Error, OSError, ValueError) as error:
        raise ConfigError(f"{url}: ~/.ssh/config cannot be used: {sanitize(str(error), limit=300)}; mend it") from error
    named = [str(name) for name in config.get("IdentityFile", None) or ()]
    keys = _find_readable(named) or _find_readable(USUAL_KEYS)
    _check_key_modes(keys)
    agent = _choose_agent(config.get("IdentityAgent", "SSH_AUTH_SOCK"))
    kept = [name for name in user_hosts if name != os.devnull]
    return SshSettings(
        port=options.port,
        known_name=alias or (options.host if options.port == DEFAULT_PORT else f"[{options.host}]:{options.port}"),
        hosts_file=kept[0] if kept else "",
        known_hosts=tuple(name for name in (*user_hosts, *global_hosts) if os.access(name, os.R_OK)),
        keys=keys,
        missing_keys=tuple(name for name in named if not Path(name).expanduser().exists()),
        agent=agent,
        jumps=jumps,
        arguments={**given, "agent_path": agent, **_choose_keys(keys, only=bool(config.get("IdentitiesOnly", False)))},
    )


def _choose_keys(keys: Sequence[Path], *, only: bool) -> dict[str, Any]:
    """Return asyncssh's arguments for the keys to offer; `only` these, or those of the agent too."""
    private = [str(key) for key in keys if is_private_key(key)]
    chosen: dict[str, Any] = {"client_keys": private, "ignore_encrypted": True}
    if only:
        beside = (key.with_name(f"{key.name}.pub") if is_private_key(key) else key for key in keys)
        chosen["agent_identities"] = [str(key) for key in beside if key.is_file()] or None
    return chosen


def _find_readable(names: Sequence[str]) -> tuple[Path, ...]:
    paths = (Path(name).expanduser() for name in names)
    return tuple(path for path in paths if path.is_file() and os.access(path, os.R_OK))


def _check_key_modes(keys: Sequence[Path]) -> None:
    """Refuse a private key that others may read, as ssh does and asyncssh does not; a public key in its place may be read by all."""
    for key in keys:
        if (mode := key.stat().st_mode & 0o777) & 0o077 and is_private_key(key):
            raise ConfigError(f"{key}: this private key has mode {mode:04o}, so others may read it; run `chmod 600 {key}`")


def is_private_key(key: Path) -> bool:
    """Tell whether a file holds a private key."""
    return b"PRIVATE KEY" in _read_start(key)


def is_encrypted(key: Path) -> bool:
    """Tell whether a private key can be read with its passphrase only."""
    data = _read_start(key)
    if b"BEGIN OPENSSH" not in data:
        return b"ENCRYPTED" in data
    with suppress(ValueError):
        # The binary form begins with a magic text, the length of the cipher's name in four bytes, and that name.
        content = base64.b64decode(b"".join(line for line in data.splitlines() if b"-----" not in line))
        return not content.startswith(b"openssh-key-v1\0\0\0\0\4none")
    return False


def _read_start(key: Path) -> bytes:
    with key.open("rb") as file:
        return file.read(MAX_KEY_BYTES)


def _choose_agent(named: object) -> str:
    """Return the socket of the agent that IdentityAgent names: a path, `SSH_AUTH_SOCK` or `$VARIABLE`; "" for `none`."""
    text = str(named or "")
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        return os.environ.get(text.removeprefix("$"), "")
    return str(Path(text).expanduser()) if text else ""


def _expand_path(name: str, tokens: dict[str, str]) -> str:
    """Return the path of a known_hosts file, whose name may hold `~`, `%h` and other tokens, and `${VARIABLE}`.

    Raises:
        ValueError: A token or variable is unknown.
    """
    known = {"%": "%", "d": str(Path.home()), "u": getpass.getuser(), "i": str(os.getuid()), **tokens}

    def replace(match: re.Match[str]) -> str:
        found = known.get(match[1]) if match[1] else os.environ.get(match[2])
        if found is None:
            raise ValueError(f"{match[0]} in {name} is unknown")
        return found

    return str(Path(re.sub(r"%(.)|\$\{(\w+)\}", replace, name)).expanduser())


def _parse_jumps(told: object) -> tuple[SshAddress, ...]:
    """Return the hosts of ProxyJump, `[user@]host[:port]` or `ssh://…`, separated by commas.

    Raises:
        ValueError: One of them is malformed.
    """
    if not isinstance(told, str):
        return ()
    return tuple(parse_ssh_address(hop.strip().removeprefix("ssh://")) for hop in told.split(","))
