"""Parse the address of an ssh device without the ssh library, which is slow to import and optional."""

from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class SshAddress(NamedTuple):
    """The parts of `user@host:port`; user and port are None where they are left to ~/.ssh/config."""

    user: str | None
    host: str
    port: int | None


def parse_ssh_address(rest: str) -> SshAddress:
    """Return the parts of what follows `ssh://`.

    Raises:
        ValueError: The address cannot be used; the message is `fact; remedy` and never holds a password.
    """
    if ":" in rest.rpartition("@")[0]:  # checked first, so that no message of another check shows the password
        raise ValueError("a password stands in the address; use a key (ssh-copy-id), passwords are never used")
    try:
        parts = urlsplit(f"ssh://{rest}")
        port, user = parts.port, parts.username
        host = _keep_case(parts.netloc, parts.hostname or "")
    except ValueError as error:
        raise ValueError(f"{error}; write ssh://user@host:port") from error
    if not host or parts.path.strip("/") or parts.query or parts.fragment or host.startswith("-"):
        raise ValueError("no host, or something behind it; write ssh://user@host:port")
    return SshAddress(unquote(user) if user else None, host, port)


def _keep_case(netloc: str, lowered: str) -> str:
    """Return the host as it was written, since ~/.ssh/config tells `Board` from `board`; urlsplit lowers it."""
    start = netloc.lower().rfind(lowered)
    return netloc[start : start + len(lowered)]
