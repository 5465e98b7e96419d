"""The loop of a search: begin trials, resume those that were killed, and record their outcomes.

The next process on the same host resumes a trial whose process died. A trial of another host fails once its heartbeats have ceased for
`GRACE_S`. A trial during which the process died twice is not tried a third time.
"""

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from edgecompress.errors import ConfigError, EdgeCompressError
from edgecompress.files import write_atomically
from edgecompress.progress import Track, track_silently
from edgecompress.records import Axis, FailedTrial, SearchPoint, from_json, to_json
from edgecompress.records.search import Value
from edgecompress.studies.claims import OWNER, hold_trial, is_abandoned
from edgecompress.studies.drift import correct_drift
from edgecompress.studies.samplers import to_distributions
from edgecompress.studies.storage import GRACE_S, Study, set_attributes, translate_storage_errors

log = logging.getLogger(__name__)

ATTEMPTS: Final = 2
MAX_FAILURES_IN_A_ROW: Final = 3
# Names of the attributes that a trial has in the study.
POINT, REASON, STARTS = "point", "reason", "starts"
ENDED: Final = (TrialState.COMPLETE, TrialState.FAIL)

Make = Callable[[int, Path, dict[str, Value]], SearchPoint]
OnTrial = Callable[[int, SearchPoint | FailedTrial], object]


class RefusedTrial(EdgeCompressError):
    """A trial whose file was refused at the gate; the search itself is sound."""


def explore(
    study: Study, space: Mapping[str, Axis], make: Make, *, trials: int, on_trial: OnTrial = lambda *_: None, track: Track = track_silently
) -> None:
    """Run trials until the study has as many as asked for, those of other processes included.

    Args:
        make: Runs the trial of a number in a folder with a choice. An error that it raises fails the trial, not the search.
        on_trial: Called after each trial that was run here with its number and its outcome; a choice that was tried before has the
            outcome of the earlier trial.

    Raises:
        ConfigError: The storage was lost. Trials keep their folders, and the same call continues there.
        EdgeCompressError: Several trials in a row failed, other than by `RefusedTrial`, so the search itself is at fault.
    """
    failures = 0
    for number in track(_next_trials(study, space, trials), "trials", trials):
        if number is None:
            continue
        with hold_trial(study, number) as ours:
            ended = _run(study, number, make) if ours else None
        if ended is None:
            continue
        outcome, error = ended
        on_trial(number, outcome)
        failures = failures + 1 if error and not isinstance(error, RefusedTrial) else 0
        if error and failures == MAX_FAILURES_IN_A_ROW:
            kind = ConfigError if isinstance(error, ConfigError) else EdgeCompressError
            raise kind(f"search: {MAX_FAILURES_IN_A_ROW} trials in a row failed, the last with: {error}") from error


def read_outcome(trial: FrozenTrial) -> SearchPoint | FailedTrial | None:
    """Return the outcome of a trial; None while the trial runs, and for a copy of another trial."""
    if trial.state == TrialState.FAIL:
        reason = trial.user_attrs.get(REASON, "its host or its process died")
        return FailedTrial(trial=trial.number, choice=dict(trial.params), reason=reason)
    if trial.state != TrialState.COMPLETE:
        return None
    point = from_json(trial.user_attrs.get(POINT, "").encode(), SearchPoint, source=f"trial {trial.number}")
    return point if point.trial == trial.number else None


def _next_trials(study: Study, space: Mapping[str, Axis], trials: int) -> Iterator[int | None]:
    """Yield the numbers of the trials to run, after one None for each trial that has ended, so that a progress bar starts behind those."""
    yield from (None for trial in study.trials() if trial.state in ENDED)
    tried: set[int] = set()
    while True:
        with translate_storage_errors(study.place), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study.optuna)
        for trial in filter(_is_unclaimed, study.trials()):
            _fail_trial(study, trial.number, dict(trial.params), EdgeCompressError("its process died before it began"))
        known = study.trials()
        left = next((trial.number for trial in known if trial.number not in tried and is_abandoned(study, trial)), None)
        if left is None and len(known) >= trials:
            return
        number = _begin_trial(study, space) if left is None else left
        tried.add(number)
        yield number


def _is_unclaimed(trial: FrozenTrial) -> bool:
    """Whether a trial was proposed and never begun; such a trial has neither a folder nor heartbeats."""
    if trial.state != TrialState.RUNNING or OWNER in trial.user_attrs or trial.datetime_start is None:
        return False
    return (datetime.now() - trial.datetime_start).total_seconds() > GRACE_S


def _begin_trial(study: Study, space: Mapping[str, Axis]) -> int:
    """Begin a new trial."""
    with translate_storage_errors(study.place), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Optuna expects heartbeats of Study.optimize alone; claims.py sends them.
        return study.optuna.ask(to_distributions(space)).number


def _run(study: Study, number: int, make: Make) -> tuple[SearchPoint | FailedTrial, Exception | None] | None:
    """Run a trial that this process holds; return its outcome and its error, None if another process ended the trial meanwhile."""
    known = study.trials()
    trial = next(trial for trial in known if trial.number == number)
    choice, starts = dict(trial.params), trial.user_attrs.get(STARTS, 0)
    if starts >= ATTEMPTS:
        return _fail_trial(study, number, choice, EdgeCompressError(f"the process that ran it died {starts} times; its run folder is kept"))
    if not set_attributes(study, number, **{STARTS: starts + 1}):
        return None
    try:
        point = _find_earlier_point(known, choice) or make(number, study.run_folder(number), choice)
    except KeyboardInterrupt:  # An interrupt is not the fault of the trial.
        set_attributes(study, number, **{STARTS: starts})
        raise
    except Exception as error:
        return _fail_trial(study, number, choice, error)
    earlier = (read_outcome(trial) for trial in known if trial.state == TrialState.COMPLETE)
    score = correct_drift([*(p for p in earlier if isinstance(p, SearchPoint)), point])[-1].score
    ours = set_attributes(study, number, **{POINT: to_json(point).decode()})
    return (point, None) if ours and _tell_outcome(study, number, values=[score.accuracy, score.latency_ms, score.size_bytes]) else None


def _fail_trial(study: Study, number: int, choice: dict[str, Value], error: Exception) -> tuple[FailedTrial, Exception] | None:
    """Record why a trial failed, with the traceback of an unexpected error."""
    reason = str(error)
    if not isinstance(error, EdgeCompressError):
        reason = f"{type(error).__name__}: {error}"
        write_atomically(study.run_folder(number) / "error.txt", "".join(traceback.format_exception(error)).encode())
    ours = set_attributes(study, number, **{REASON: reason}) and _tell_outcome(study, number, state=TrialState.FAIL)
    return (FailedTrial(trial=number, choice=choice, reason=reason), error) if ours else None


def _tell_outcome(study: Study, number: int, **ending: Any) -> bool:
    """End a trial; return whether this process still held it."""
    try:
        with translate_storage_errors(study.place):
            study.optuna.tell(number, **ending)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        log.warning("trial %d: ended by another process meanwhile; its run folder is kept", number)
        return False
    return True


def _find_earlier_point(known: list[FrozenTrial], choice: dict[str, Value]) -> SearchPoint | None:
    """Return the point of an earlier trial with the same choice, which need not be measured again."""
    earlier = (read_outcome(trial) for trial in known if trial.state == TrialState.COMPLETE and trial.params == choice)
    return next((point for point in earlier if isinstance(point, SearchPoint)), None)
