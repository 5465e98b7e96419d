"""Exclusive use of a trial: a lock in its folder on this host, and heartbeats in the database for other hosts."""

import logging
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from edgecompress.errors import ConfigError
from edgecompress.files import explain_write_error
from edgecompress.studies.storage import HEARTBEAT_S, Study, set_attributes, translate_storage_errors

log = logging.getLogger(__name__)

OWNER: Final = "owner"  # The attribute of a trial that holds its host and folder.


def is_abandoned(study: Study, trial: FrozenTrial) -> bool:
    """Whether a trial of this host and folder is marked as running while no process holds it."""
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
    return [platform.node(), str(study.run_folder(number).resolve())]


def _lock(study: Study, number: int) -> FileLock:
    return FileLock(study.run_folder(number) / ".lock.trial", timeout=0)


@contextmanager
def hold_trial(study: Study, number: int) -> Iterator[bool]:
    """Hold a trial and send heartbeats for it; yield whether this process may run it."""
    folder = study.run_folder(number)
    lock = _lock(study, number)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise explain_write_error(error, folder) from error
    try:
        state = next(trial.state for trial in study.trials() if trial.number == number)
        if state != TrialState.RUNNING:  # Another process has ended it meanwhile.
            yield False
            return
        with _send_heartbeats(study, number):  # The first heartbeat comes before the owner, so that every trial with an owner has one.
            yield set_attributes(study, number, **{OWNER: _owner(study, number)})
    finally:
        lock.release()


@contextmanager
def _send_heartbeats(study: Study, number: int) -> Iterator[None]:
    """Send heartbeats from a thread while the block runs; the first one is sent before the block starts."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            try:
                _send_heartbeat(study, number)
            except ConfigError as error:
                log.warning("trial %d: no heartbeat: %s", number, error)
        study.storage.remove_session()  # Sessions belong to threads.

    _send_heartbeat(study, number)
    heart = threading.Thread(target=beat, name=f"heartbeat of trial {number}", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()


def _send_heartbeat(study: Study, number: int) -> None:
    with translate_storage_errors(study.place):
        study.storage.record_heartbeat(study.trial_id(number))
