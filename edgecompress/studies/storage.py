"""The database of studies: an SQLite file, or PostgreSQL for hosts that share a search. Its errors become errors of this package."""

import logging
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from edgecompress.devices.leases.store import POSTGRES_SCHEMES, strip_password
from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError
from edgecompress.files import explain_write_error
from edgecompress.records import SearchSpec, from_json, to_json

log = logging.getLogger(__name__)

BUSY_S: Final = 30
TRIES: Final = 5
HEARTBEAT_S: Final = 30
GRACE_S: Final = 600  # A host that sent no heartbeat for so long is taken to be dead.
SPEC: Final = "edgecompress"
DIRECTIONS: Final = ("maximize", "minimize", "minimize")  # The order is accuracy, latency, size.


def display_name(place: str) -> str:
    """Return the name of a storage for messages and records, without its password."""
    return strip_password(place) if "://" in place else place


@contextmanager
def translate_storage_errors(name: str) -> Iterator[None]:
    """Turn errors of the database into a `ConfigError` that names the storage and a remedy.

    Raises:
        ConfigError: It cannot be reached or written, or its tables are not those of a study.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said = sanitize(" ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split()), limit=300)
        raise ConfigError(
            f"{name}: the study cannot be kept there: {said}; check it or give another --storage, finished trials are kept"
        ) from error


@contextmanager
def open_storage(place: str) -> Iterator[RDBStorage]:
    """Open or make the database of studies; close its connections at the end.

    Args:
        place: `postgresql://…`, or the path of an SQLite file.

    Raises:
        ConfigError: It cannot be reached, is no database of studies, or is one of another version of Optuna.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # The search reports each trial itself.
    name = display_name(place)
    url = _url(place)
    postgres = url.get_backend_name() == "postgresql"
    connect = {"connect_timeout": BUSY_S} if postgres else {"timeout": BUSY_S}
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna applies str.format to the URL.
    with translate_storage_errors(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Heartbeats have been called experimental since 2021.
        try:
            storage = _connect(text, {"connect_args": connect, "pool_pre_ping": postgres})
        except ImportError as error:
            raise ConfigError(f"{name}: psycopg is not installed; pip install 'edgecompress[postgres]'") from error
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, optuna.exceptions.OptunaError):
                raise
            made = "was made by another version of Optuna" if "version" in str(error) else "has no version of Optuna"
            upgrade = f"`optuna storage upgrade`, or give another --storage (this is Optuna {optuna.__version__})"
            raise ConfigError(f"{name}: {made}; bring it up to date with {upgrade}") from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(storage: RDBStorage, name: str, *, place: str) -> tuple[optuna.Study, SearchSpec | None]:
    """Open or make the study of that name; return it with its specification, None for a new study.

    Raises:
        ConfigError: The storage refuses, or the study is not of a search like ours.
    """
    where = f"{display_name(place)}: study {name!r}"
    with translate_storage_errors(display_name(place)):
        study = optuna.create_study(study_name=name, storage=storage, directions=DIRECTIONS, load_if_exists=True)
        directions, begun = tuple(direction.name.lower() for direction in study.directions), bool(study.get_trials(deepcopy=False))
        attributes = study.user_attrs  # They are read after the trials, because whoever begins a trial has stored the specification before.
        if SPEC not in attributes and (begun or directions != DIRECTIONS):
            raise ConfigError(f"{where} was not made by `edgecompress search`; give another --study")
    if SPEC not in attributes:
        return study, None
    return study, from_json(attributes[SPEC].encode(), SearchSpec, source=where)


class Study(NamedTuple):
    """A study, its storage, and the folder of the trials that run here."""

    optuna: optuna.Study
    storage: RDBStorage
    place: str
    folder: Path

    def trials(self) -> list[FrozenTrial]:
        with translate_storage_errors(self.place):
            return self.optuna.get_trials(deepcopy=False)

    def run_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}"

    def trial_id(self, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(self.optuna.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)


def store_spec(study: optuna.Study, spec: SearchSpec) -> None:
    """Store the specification of a new study."""
    study.set_user_attr(SPEC, to_json(spec).decode())


def set_attributes(study: Study, number: int, **attributes: Any) -> bool:
    """Set attributes of a running trial; return whether it still runs."""
    try:
        with translate_storage_errors(study.place):
            for name, value in attributes.items():
                study.storage.set_trial_user_attr(study.trial_id(number), name, value)
    except optuna.exceptions.UpdateFinishedTrialError:
        log.warning("trial %d: ended by another process meanwhile; its run folder is kept", number)
        return False
    return True


def _connect(url: str, engine: dict[str, Any]) -> RDBStorage:
    """Make the tables and connect; a process that finds another one making the same tables tries again."""
    for left in reversed(range(TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=dict(engine), heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
        except SQLAlchemyError as error:
            if not left or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(0.5)
    raise AssertionError("unreachable")


def _url(place: str) -> URL:
    scheme, separator, _ = place.partition("://")
    if not separator:
        path = Path(place).expanduser()
        _check_file(path)
        return URL.create("sqlite", database=str(path.absolute()))
    if scheme not in POSTGRES_SCHEMES:
        raise ConfigError(f"--storage: studies cannot lie at {sanitize(scheme)}://; give postgresql://… or the path of a file")
    try:
        return make_url(place).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError) as error:  # The text of the error may hold the password.
        raise ConfigError("--storage: no such URL can be; write postgresql://user@host:port/database") from error


def _check_file(path: Path) -> None:
    """Refuse a file of something else before a table is made in it.

    Raises:
        ConfigError: It is no database, or one of something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_write_error(error, path) from error
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: no SQLite database ({error}); give another --storage") from error
    if tables and not {"studies", "version_info"} & tables:  # Optuna makes these tables first.
        raise ConfigError(f"{path}: an SQLite database of something else, with table {sorted(tables)[0]!r}; give another --storage")
