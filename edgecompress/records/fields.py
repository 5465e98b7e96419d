"""Values that a user gives, and how they are checked: the same for every record and command."""

from collections.abc import Iterable

from edgecompress.errors import ConfigError


def check_choice(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Raises:
        ConfigError: It is not; lists the known.
    """
    known = tuple(known)
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    return name
