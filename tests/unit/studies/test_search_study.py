"""Laws of studies, on a real SQLite file and a real PostgreSQL server, between real processes. What a trial does takes no time here."""

import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing

import msgspec
import optuna
import pytest
from optuna.trial import TrialState
from support.paths import TESTS
from support.searches import SPACE, SPEC, point, score, study

from edgecompress.errors import ConfigError, DeviceError, EdgeCompressError, ParityError, ToolchainError
from edgecompress.records import FailedTrial, Score, SearchPoint
from edgecompress.studies import claims
from edgecompress.studies.drift import correct_drift
from edgecompress.studies.loop import RefusedTrial, explore, read_outcome
from edgecompress.studies.samplers import NSGA2_POPULATION, SAMPLERS, TPE_RANDOM_TRIALS
from edgecompress.studies.storage import open_storage, open_study
from edgecompress.studies.study import summarize_study
from edgecompress.targets import SAMPLERS as NAMES


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgres"))])
def place(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "study.sqlite3")
    url = request.getfixturevalue("postgres")
    with open_storage(url) as storage:
        for known in storage.get_all_studies():
            storage.delete_study(known._study_id)
    return url


def choices(folder, trials, **options):
    with study(folder, **options) as ours:
        explore(ours, SPACE, point, trials=trials)
        return [trial.params for trial in ours.trials()]


def starts(folder, number):
    return len((folder / "trials" / f"{number:04}" / "starts").read_text())


def child(folder, place, trials, seconds=0.0):
    argv = [sys.executable, "-m", "support.searches", str(folder), str(place), str(trials), str(seconds)]
    return subprocess.Popen(argv, cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- latencies ---


def drifting(number, folder, choice, speeds=(1.0, 4.0, 0.5, 2.0)):
    """A trial on a machine that is faster or slower each time, which its dense file meets too."""
    made, speed = point(number, folder, choice), speeds[number % len(speeds)]
    slowed = msgspec.structs.replace(made.score, latency_ms=made.score.latency_ms * speed)
    return msgspec.structs.replace(made, score=slowed, dense=Score(accuracy=1.0, latency_ms=1.5 * speed, size_bytes=10**6))


def test_a_machine_that_drifts_changes_neither_what_is_proposed_nor_what_is_found(tmp_path):
    trials = 2 * NSGA2_POPULATION
    steady = choices(tmp_path / "steady", trials, sampler="nsga2")
    with study(tmp_path / "drifting", sampler="nsga2") as ours:
        explore(ours, SPACE, drifting, trials=trials)
        assert [trial.params for trial in ours.trials()] == steady
        found = summarize_study(ours, SPEC).points
    assert [p.score for p in found] == [score(p.choice) for p in found]
    assert {p.dense.latency_ms for p in found} == {1.5}


def test_latencies_are_compared_within_a_format_and_a_resolution(tmp_path):
    (tmp_path / "0").mkdir()
    one = drifting(1, tmp_path / "0", {"macs_ratio": 0.5, "method": "auto", "output": "tflite fp16"})
    others = [msgspec.structs.replace(one, **change) for change in ({"artifact": "net.onnx"}, {"choice": {**one.choice, "resolution": 24}})]
    assert correct_drift([drifting(0, tmp_path / "0", one.choice), *others])[1:] == others


def test_a_point_without_a_dense_file_stays_as_it_was_measured(tmp_path):
    (tmp_path / "0").mkdir()
    alone = msgspec.structs.replace(drifting(1, tmp_path / "0", {"macs_ratio": 0.5, "method": "auto", "output": "tflite fp16"}), dense=None)
    assert correct_drift([drifting(0, tmp_path / "0", alone.choice), alone])[1] == alone


# --- samplers ---


def test_the_samplers_that_can_be_named_are_those_there_are():
    assert tuple(SAMPLERS) == NAMES


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_in_two_goes_tries_what_one_go_would_and_another_seed_something_else(sampler, tmp_path):
    trials = max(TPE_RANDOM_TRIALS, NSGA2_POPULATION) + 2  # the last depend on the results of the first
    whole = choices(tmp_path / "whole", trials, sampler=sampler)
    choices(tmp_path / "parts", 5, sampler=sampler)
    assert choices(tmp_path / "parts", trials, sampler=sampler) == whole
    ratios = [choice["macs_ratio"] for choice in whole]
    assert len(set(ratios[:NSGA2_POPULATION])) == NSGA2_POPULATION
    other = choices(tmp_path / "other", 2, sampler=sampler, seed=1)
    assert not {choice["macs_ratio"] for choice in other} & set(ratios)


def test_tpe_learns_where_the_front_lies(tmp_path):
    """`svd` only costs time here, so it is on no front."""
    tried = [choice["method"] for choice in choices(tmp_path, 24)]
    assert tried[TPE_RANDOM_TRIALS:].count("auto") > 0.7 * len(tried[TPE_RANDOM_TRIALS:])


# --- trials that fail ---


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ParityError("net: agrees 0.5"), "net: agrees 0.5"), (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero")],
)
def test_a_trial_that_crashes_is_a_failed_trial_and_the_search_goes_on(error, reason, tmp_path):
    def make(number, folder, choice):
        if number == 1:
            raise error
        return point(number, folder, choice)

    told = []
    with study(tmp_path) as ours:
        explore(ours, SPACE, make, trials=4, on_trial=lambda number, outcome: told.append((number, type(outcome))))
        outcomes = [read_outcome(trial) for trial in ours.trials()]
    assert told == [(0, SearchPoint), (1, FailedTrial), (2, SearchPoint), (3, SearchPoint)]
    assert outcomes[1].reason == reason
    assert (tmp_path / "trials/0001/error.txt").exists() == isinstance(error, ZeroDivisionError)


def test_three_failures_in_a_row_end_the_search_but_refusals_do_not(tmp_path):
    def failing(number, folder, choice):
        raise RefusedTrial("agrees too seldom") if number < 5 else DeviceError("phone: offline; plug it in")

    with study(tmp_path) as ours, pytest.raises(EdgeCompressError, match=r"3 trials in a row failed, the last with: phone: offline"):
        explore(ours, SPACE, failing, trials=20)
    with study(tmp_path) as ours:
        assert [trial.state for trial in ours.trials()] == [TrialState.FAIL] * 8
        explore(ours, SPACE, point, trials=10)
        assert [trial.state for trial in ours.trials()][8:] == [TrialState.COMPLETE] * 2


def test_a_choice_that_was_tried_is_not_tried_again(tmp_path):
    space = {name: axis for name, axis in SPACE.items() if axis.values}
    told = []

    def make(number, folder, choice):
        return point(number, folder, choice | {"macs_ratio": 0.5})

    with study(tmp_path) as ours:
        explore(ours, space, make, trials=12, on_trial=lambda number, outcome: told.append((number, outcome.trial)))
        outcomes = [read_outcome(trial) for trial in ours.trials()]
    own = [number for number, of in told if number == of]
    assert len(told) == 12
    assert len(own) <= 4
    assert [outcome.trial for outcome in outcomes if outcome is not None] == own
    assert len(list(tmp_path.glob("trials/*/starts"))) == len(own)


# --- processes that die ---


def test_an_interrupted_trial_is_taken_up_again_as_often_as_it_takes(tmp_path):
    def interrupted(number, folder, choice):
        point(number, folder, choice)
        raise KeyboardInterrupt

    for _ in range(4):
        with study(tmp_path) as ours, pytest.raises(KeyboardInterrupt):
            explore(ours, SPACE, interrupted, trials=2)
    assert choices(tmp_path, 2) == choices(tmp_path / "untroubled", 2)
    assert starts(tmp_path, 0) == 5


def kill_in_trial(process, number):
    """Kill a process without warning as soon as it is in that trial."""
    while process.stdout.readline().strip() != str(number):
        assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)


def test_a_trial_whose_process_was_killed_is_taken_up_again(place, tmp_path):
    kill_in_trial(child(tmp_path, place, 4, 60), 0)
    with study(tmp_path, place=place) as ours:
        assert [trial.state for trial in ours.trials()] == [TrialState.RUNNING]
    untroubled = choices(tmp_path / "untroubled", 4)
    assert choices(tmp_path, 4, place=place) == untroubled
    assert [starts(tmp_path, number) for number in range(4)] == [2, 1, 1, 1]


def test_a_trial_that_its_process_died_of_twice_is_given_up(tmp_path):
    for _ in range(2):
        kill_in_trial(child(tmp_path, tmp_path / "study.sqlite3", 2, 60), 0)
    with study(tmp_path) as ours:
        explore(ours, SPACE, point, trials=2)
        outcomes = [read_outcome(trial) for trial in ours.trials()]
    assert "died 2 times" in outcomes[0].reason
    assert isinstance(outcomes[1], SearchPoint)


def test_a_trial_of_another_host_is_given_up_when_its_heartbeats_cease(place, tmp_path, monkeypatch):
    kill_in_trial(child(tmp_path, place, 3, 60), 0)
    monkeypatch.setattr(claims.platform, "node", lambda: "another-host")
    assert len(choices(tmp_path / "elsewhere", 2, place=place)) == 2
    with study(tmp_path / "elsewhere", place=place) as ours:
        assert [trial.state for trial in ours.trials()] == [TrialState.RUNNING, TrialState.COMPLETE]  # it may only be slow
        ours.storage.grace_period = 1
        with ours.storage.engine.begin() as connection:  # an hour passes
            hour = "heartbeat - interval '1 hour'" if "postgresql" in place else "datetime(heartbeat, '-1 hour')"
            connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = {hour}")
        explore(ours, SPACE, point, trials=3)
        assert [trial.state for trial in ours.trials()] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
        assert read_outcome(ours.trials()[0]).reason == "its host or its process died"


def test_a_trial_that_was_proposed_and_never_begun_is_given_up(tmp_path):
    with study(tmp_path) as ours, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours.optuna.ask()
        explore(ours, SPACE, point, trials=2)
        assert [trial.state for trial in ours.trials()] == [TrialState.RUNNING, TrialState.COMPLETE]  # it may be about to begin
    with study(tmp_path) as ours:
        with ours.storage.engine.begin() as connection:  # an hour passes
            connection.exec_driver_sql("UPDATE trials SET datetime_start = datetime(datetime_start, '-1 hour')")
        explore(ours, SPACE, point, trials=2)
        assert read_outcome(ours.trials()[0]).reason == "its process died before it began"


def test_processes_that_share_a_study_run_each_trial_once(place, tmp_path):
    trials = 12
    processes = [child(tmp_path, place, trials, 0.05) for _ in range(2)]
    done = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], done
    ran = [[int(number) for number in out.split()] for out, _ in done]
    assert all(ran), "both took part"
    with study(tmp_path, place=place) as ours:
        known = ours.trials()
    assert sorted([*ran[0], *ran[1]]) == [trial.number for trial in known]
    assert trials <= len(known) <= trials + 1
    assert {trial.state for trial in known} == {TrialState.COMPLETE}
    assert all(trial.values == [*vars_of(score(trial.params))] for trial in known)


def vars_of(found):
    return found.accuracy, found.latency_ms, found.size_bytes


# --- storages that cannot be used ---


def test_without_optuna_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("edgecompress.studies.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ToolchainError, match=r"optuna is not installed; pip install 'edgecompress\[search\]'"):
        importlib.import_module("edgecompress.studies.study")


def other_database(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.commit()


def of_version(path, version):
    with study(path.parent, place=path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.commit()


WRONG = {
    "no database": (lambda path: path.write_bytes(b"PK\x03\x04 no database" * 100), r"no SQLite database \(file is not a database\)"),
    "a folder": (lambda path: path.mkdir(), r"no SQLite database"),
    "of something else": (other_database, r"an SQLite database of something else, with table 'customers'"),
    "older": (lambda path: of_version(path, "v2.6.0.a"), r"was made by another version of Optuna; bring it up to date"),
    "newer": (lambda path: of_version(path, "v9.9.9"), r"was made by another version of Optuna"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_storage_of_ours_is_refused_and_left_alone(kind, tmp_path):
    path = tmp_path / "study.sqlite3"
    make, message = WRONG[kind]
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigError, match=message), study(tmp_path):
        pass
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://nobody:secret@127.0.0.1:1/x", r"^postgresql://127.0.0.1:1/x: the study cannot be kept there: .*refused"),
        ("mysql://nobody:secret@host/x", r"studies cannot lie at mysql://; give postgresql://"),
        ("postgresql://nobody:secret@host:port/x", r"no such URL can be"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_without_the_password(url, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught, study(tmp_path, place=url):
        pass
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.*cannot be written"), study(tmp_path / "file" / "inside"):
        pass


def test_a_study_of_somebody_else_is_refused(tmp_path):
    with study(tmp_path, name="ours") as ours:
        optuna.create_study(study_name="theirs", storage=ours.storage)
        with pytest.raises(ConfigError, match=r"study 'theirs' was not made by `edgecompress search`; give another --study"):
            open_study(ours.storage, "theirs", place="here")


def test_a_storage_that_is_lost_meanwhile_is_named_and_the_trial_taken_up_again(tmp_path):
    database, aside = tmp_path / "study.sqlite3", tmp_path / "aside"

    def make(number, folder, choice):
        if not aside.exists() and number == 1:
            ours.storage.engine.dispose()
            database.rename(aside)
            database.write_bytes(b"overwritten by somebody" * 1000)
        return point(number, folder, choice)

    with study(tmp_path) as ours, pytest.raises(ConfigError, match=r"the study cannot be kept there: .*not a database"):
        explore(ours, SPACE, make, trials=3)
    aside.replace(database)
    assert choices(tmp_path, 3) == choices(tmp_path / "untroubled", 3)
