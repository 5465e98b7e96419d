"""The database that holds the leases: an SQLite file, or PostgreSQL for hosts that share devices. One dialect of SQL serves both.

`{now}` in a statement is the store's own clock in seconds, so hosts that share a store need not agree on the time. `:name` is a parameter.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError
from edgecompress.files import explain_write_error

SqlRow: TypeAlias = tuple[Any, ...]

LEASES_VARIABLE: Final = "EDGECOMPRESS_LEASES"
LOCK_TIMEOUT_S: Final = 20.0
POSTGRES_SCHEMES: Final = ("postgresql", "postgres")
# `turns` is the history: who had which device from when to when. A turn ends at the expiry of its lease until the lease is given back.
CREATE_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS edgecompress_leases (device TEXT PRIMARY KEY, holder TEXT NOT NULL, host TEXT NOT NULL, "
    "pid INTEGER NOT NULL, taken_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE IF NOT EXISTS edgecompress_turns (holder TEXT PRIMARY KEY, device TEXT NOT NULL, host TEXT NOT NULL, "
    "pid INTEGER NOT NULL, taken_at DOUBLE PRECISION NOT NULL, ended_at DOUBLE PRECISION NOT NULL)",
)


class Transaction(Protocol):
    def __call__(self, sql: str, **values: Any) -> list[SqlRow]:
        """Run one statement and return its rows."""


class LeaseStore:
    """A store of leases. Each transaction has a connection of its own, so that threads and lost connections need no care."""

    def __init__(self, place: str) -> None:
        """Open the store, and make it where it does not exist.

        Args:
            place: `postgresql://…`, or the path of an SQLite file.

        Raises:
            ConfigError: The store cannot be used.
        """
        scheme, separator, _ = place.partition("://")
        if separator and scheme not in POSTGRES_SCHEMES:
            raise ConfigError(f"{LEASES_VARIABLE}: leases cannot lie at {sanitize(scheme)}://; give postgresql://… or the path of a file")
        self.place = place
        self.is_postgres = bool(separator)
        self.name = strip_password(place) if separator else place
        with self.transaction() as execute:
            for statement in CREATE_TABLES:
                execute(statement)
        if not self.is_postgres:
            self._enable_write_ahead_log()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Yield a function that runs statements; of all processes only one has a transaction open at a time.

        Raises:
            ConfigError: The store cannot be reached, or is no store.
        """
        with self._open_postgres() if self.is_postgres else self._open_sqlite() as execute:
            yield execute

    @contextmanager
    def _open_sqlite(self) -> Iterator[Transaction]:
        path = Path(self.place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write_error(error, path) from error
        now = "((julianday('now') - 2440587.5) * 86400.0)"
        try:
            with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")  # a transaction that reads first and writes later could not wait for its turn
                yield lambda sql, **values: connection.execute(sql.replace("{now}", now), values).fetchall()
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConfigError(
                f"{self.name}: the leases cannot be kept there: {error}; remove it or set {LEASES_VARIABLE} to another file"
            ) from error

    def _enable_write_ahead_log(self) -> None:
        """Make readers independent of a writer; a process that finds the file in use leaves this to the next one."""
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self.place, timeout=LOCK_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def _open_postgres(self) -> Iterator[Transaction]:
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(f"{self.name}: psycopg is not installed; pip install 'edgecompress[postgres]'") from error
        try:
            with psycopg.connect(self.place, connect_timeout=int(LOCK_TIMEOUT_S)) as connection:
                # now() would be the start of the transaction, which may have waited for the lock.
                connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S:g}s'")
                connection.execute("SELECT pg_advisory_xact_lock(hashtext('edgecompress_leases'))")

                def execute(sql: str, **values: Any) -> list[SqlRow]:
                    text = re.sub(r":(\w+)", r"%(\1)s", sql).replace("{now}", "extract(epoch FROM clock_timestamp())::float8")
                    cursor = connection.execute(text.encode(), values)
                    return cursor.fetchall() if cursor.description else []

                yield execute
        except psycopg.Error as error:
            said = sanitize(str(error).strip().replace("\n", " "), limit=300)
            raise ConfigError(f"{self.name}: the leases cannot be kept there: {said}; check the server and {LEASES_VARIABLE}") from error


def strip_password(url: str) -> str:
    """Return host, port and database of a URL, for messages."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "postgresql://"
