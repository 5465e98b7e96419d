"""Who runs a trial: whoever holds the lock in its folder. The database knows by heartbeats that somebody on some host does."""

import logging
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from edgecompress.errors import ConfigError
from edgecompress.files import explain
from edgecompress.studies.storage import HEARTBEAT_S, Study, noted, storing

log = logging.getLogger(__name__)

OWNER: Final = "owner"  # attribute of a trial: host and folder


def is_abandoned(study: Study, trial: FrozenTrial) -> bool:
    """Whether a trial of this host and folder runs, but nobody runs it."""
    if trial.state != TrialState.RUNNING or trial.user_attrs.get(OWNER) != _owner(study, trial.number):
        return False
    lock = _lock(study, trial.number)
    try:
        lock.acquire()
    except Timeout:
        return False
    lock.release()
    return True


def _owner(study: Study, number: int) -> list[str]:
    return [platform.node(), str(study.run_of(number).resolve())]


def _lock(study: Study, number: int) -> FileLock:
    return FileLock(study.run_of(number) / ".lock.trial", timeout=0)


@contextmanager
def claimed(study: Study, number: int) -> Iterator[bool]:
    """Hold a trial and tell the database that it lives; yield whether it is ours to run."""
    folder = study.run_of(number)
    lock = _lock(study, number)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise explain(error, folder) from error
    try:
        state = next(trial.state for trial in study.trials() if trial.number == number)
        if state != TrialState.RUNNING:  # somebody was faster
            yield False
            return
        with _beating(study, number):  # a trial with an owner has a heartbeat
            yield noted(study, number, **{OWNER: _owner(study, number)})
    finally:
        lock.release()


@contextmanager
def _beating(study: Study, number: int) -> Iterator[None]:
    """Send heartbeats, the first before anything else."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            try:
                _beat(study, number)
            except ConfigError as error:
                log.warning("trial %d: no heartbeat: %s", number, error)
        study.storage.remove_session()  # this thread's

    _beat(study, number)
    heart = threading.Thread(target=beat, name=f"heartbeat of trial {number}", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()


def _beat(study: Study, number: int) -> None:
    with storing(study.place):
        study.storage.record_heartbeat(study.id_of(number))
