"""Trials begun, taken up again and ended.

A trial whose process died is taken up again by the next one on its host, where it stopped; one of another host is given up when its
heartbeats have long ceased. One that its process died of twice is not tried a third time.
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

from edgecompress.errors import EdgeCompressError
from edgecompress.files import write_atomic
from edgecompress.progress import Track, silent
from edgecompress.records import Axis, FailedTrial, SearchPoint, from_json, to_json
from edgecompress.records.search import Value
from edgecompress.studies.claims import OWNER, claimed, is_abandoned
from edgecompress.studies.samplers import distributions
from edgecompress.studies.speeds import at_one_speed
from edgecompress.studies.storage import GRACE_S, Study, noted, storing

log = logging.getLogger(__name__)

ATTEMPTS: Final = 2
IN_A_ROW: Final = 3
POINT, REASON, STARTS = "point", "reason", "starts"  # attributes of a trial
ENDED: Final = (TrialState.COMPLETE, TrialState.FAIL)

Make = Callable[[int, Path, dict[str, Value]], SearchPoint]
OnTrial = Callable[[int, SearchPoint | FailedTrial], object]


class Refused(EdgeCompressError):
    """The choice led to a file that is not published: nothing is wrong with the search."""


def explore(
    study: Study, space: Mapping[str, Axis], make: Make, *, trials: int, on_trial: OnTrial = lambda *_: None, track: Track = silent
) -> None:
    """Run trials until the study has as many as asked for, those of others counted.

    Args:
        make: Runs the trial of that number in that folder with that choice. What it raises fails the trial, not the search.
        on_trial: Called with the number of each trial that was run here and what became of it: an earlier point where the choice is
            an earlier one.

    Raises:
        ConfigError: The storage was lost. What a trial has done is in its folder; the same call goes on there.
        EdgeCompressError: Several trials in a row failed, other than by `Refused`: the fault is not theirs.
    """
    failures = 0
    for number in track(_turns(study, space, trials), "trials", trials):
        if number is None:
            continue
        with claimed(study, number) as ours:
            ended = _run(study, number, make) if ours else None
        if ended is None:
            continue
        outcome, error = ended
        on_trial(number, outcome)
        failures = failures + 1 if error and not isinstance(error, Refused) else 0
        if error and failures == IN_A_ROW:
            raise EdgeCompressError(f"search: {IN_A_ROW} trials in a row failed, the last with: {error}") from error


def outcome_of(trial: FrozenTrial) -> SearchPoint | FailedTrial | None:
    """Return what became of a trial; None while it runs, and for one that is a copy of another."""
    if trial.state == TrialState.FAIL:
        reason = trial.user_attrs.get(REASON, "its host or its process died")
        return FailedTrial(trial=trial.number, choice=dict(trial.params), reason=reason)
    if trial.state != TrialState.COMPLETE:
        return None
    point = from_json(trial.user_attrs.get(POINT, "").encode(), SearchPoint, source=f"trial {trial.number}")
    return point if point.trial == trial.number else None


def _turns(study: Study, space: Mapping[str, Axis], trials: int) -> Iterator[int | None]:
    """Yield the trials to run: None for each that has ended before, so that a bar begins where the study is."""
    yield from (None for trial in study.trials() if trial.state in ENDED)
    tried: set[int] = set()
    while True:
        with storing(study.place), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study.optuna)
        for trial in filter(_is_unclaimed, study.trials()):
            _failed(study, trial.number, dict(trial.params), EdgeCompressError("its process died before it began"))
        known = study.trials()
        left = next((trial.number for trial in known if trial.number not in tried and is_abandoned(study, trial)), None)
        if left is None and len(known) >= trials:
            return
        number = _ask(study, space) if left is None else left
        tried.add(number)
        yield number


def _is_unclaimed(trial: FrozenTrial) -> bool:
    """Whether a trial was proposed and nobody ever began it: it has neither a folder nor heartbeats by which to know."""
    if trial.state != TrialState.RUNNING or OWNER in trial.user_attrs or trial.datetime_start is None:
        return False
    return (datetime.now() - trial.datetime_start).total_seconds() > GRACE_S


def _ask(study: Study, space: Mapping[str, Axis]) -> int:
    """Begin a new trial."""
    with storing(study.place), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # heartbeats are for Study.optimize, Optuna says; we send them ourselves
        return study.optuna.ask(distributions(space)).number


def _run(study: Study, number: int, make: Make) -> tuple[SearchPoint | FailedTrial, Exception | None] | None:
    """Run a trial that is ours and write down what became of it, with the error that it failed with; None when others gave it up."""
    known = study.trials()
    trial = next(trial for trial in known if trial.number == number)
    choice, starts = dict(trial.params), trial.user_attrs.get(STARTS, 0)
    if starts >= ATTEMPTS:
        return _failed(study, number, choice, EdgeCompressError(f"the process that ran it died {starts} times; its run folder is kept"))
    if not noted(study, number, **{STARTS: starts + 1}):
        return None
    try:
        point = _as_before(known, choice) or make(number, study.run_of(number), choice)
    except KeyboardInterrupt:  # not its fault, so it does not count
        noted(study, number, **{STARTS: starts})
        raise
    except Exception as error:
        return _failed(study, number, choice, error)
    earlier = (outcome_of(trial) for trial in known if trial.state == TrialState.COMPLETE)
    score = at_one_speed([*(p for p in earlier if isinstance(p, SearchPoint)), point])[-1].score
    ours = noted(study, number, **{POINT: to_json(point).decode()})
    return (point, None) if ours and _told(study, number, values=[score.accuracy, score.latency_ms, score.size_bytes]) else None


def _failed(study: Study, number: int, choice: dict[str, Value], error: Exception) -> tuple[FailedTrial, Exception] | None:
    """Write down why a trial failed, and the traceback where the reason is no error of ours."""
    reason = str(error)
    if not isinstance(error, EdgeCompressError):
        reason = f"{type(error).__name__}: {error}"
        write_atomic(study.run_of(number) / "error.txt", "".join(traceback.format_exception(error)).encode())
    ours = noted(study, number, **{REASON: reason}) and _told(study, number, state=TrialState.FAIL)
    return (FailedTrial(trial=number, choice=choice, reason=reason), error) if ours else None


def _told(study: Study, number: int, **ending: Any) -> bool:
    """End a trial; whether it was still ours to end."""
    try:
        with storing(study.place):
            study.optuna.tell(number, **ending)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        log.warning("trial %d: ended by another process meanwhile; its run folder is kept", number)
        return False
    return True


def _as_before(known: list[FrozenTrial], choice: dict[str, Value]) -> SearchPoint | None:
    """Return the point of an earlier trial with the same choice: to measure it again would tell nothing new."""
    earlier = (outcome_of(trial) for trial in known if trial.state == TrialState.COMPLETE and trial.params == choice)
    return next((point for point in earlier if isinstance(point, SearchPoint)), None)
