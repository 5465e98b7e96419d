"""The run folder: what is reused, what is not, and who may be in it."""

import os
import subprocess
import sys

import msgspec
import pytest

from edgecompress.errors import ConfigError
from edgecompress.files import write_atomically
from edgecompress.options import Options, update_options
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.records import Budget, CompressionPlan, to_json
from edgecompress.records.run_records import RunRecords
from edgecompress.runs import hash_values, is_run, open_run, read_run

HOLDER = """
import sys
from pathlib import Path
from edgecompress.runs import open_run
with open_run(Path(sys.argv[1]), name="net", recipe="recipe.py"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "net"


def open_net(folder):
    return open_run(folder, name="net", recipe="recipe.py")


@pytest.fixture
def planned(folder):
    """A folder whose step "plan" is done, from the inputs "abc"."""
    with open_net(folder) as run:
        run.set_options(Options())
        write_atomically(run.path("plan.json"), b"{}")
        write_atomically(run.path("deep/w.bin"), b"weights")
        run.finish("plan", "abc", ("plan.json", "deep/w.bin"), 1.23456)
    return folder


def test_a_finished_step_is_reused_by_the_next_process(planned):
    with open_net(planned) as run:
        assert run.is_done("plan", "abc")
        assert run.record.steps["plan"].seconds == 1.235


@pytest.mark.parametrize("change", ["made from", "edited", "removed", "deep file removed", "other step"])
def test_a_step_is_not_reused_when_something_changed(planned, change):
    with open_net(planned) as run:
        if change == "edited":
            run.path("plan.json").write_bytes(b"{ }")
        elif change == "removed":
            run.path("plan.json").unlink()
        elif change == "deep file removed":
            run.path("deep/w.bin").unlink()
        assert not run.is_done("export" if change == "other step" else "plan", "abd" if change == "made from" else "abc")


def test_a_step_done_again_replaces_its_entry_and_keeps_the_others(planned):
    with open_net(planned) as run:
        before = run.digest("plan")
        write_atomically(run.path("stats.json"), b"[]")
        run.finish("analyze", "x", ("stats.json",), 0.1)
        write_atomically(run.path("plan.json"), b"{ }")
        run.finish("plan", "abd", ("plan.json",), 0.1)
        assert run.digest("plan") != before
    record = read_run(planned)
    assert set(record.steps) == {"plan", "analyze"}
    assert record.steps["plan"].made_from == "abd"


def test_options_are_kept(folder):
    with open_net(folder) as run:
        run.set_options(update_options(run.record.options, {"macs_ratio": 0.5}))
    with open_net(folder) as run:
        assert run.record.options.macs_ratio == 0.5
    assert is_run(folder)
    assert not is_run(folder.parent)


def test_a_second_process_is_refused_with_the_first_ones_number_and_may_come_later(folder):
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"net: in use by process {holder.pid}; wait for it, or give another folder with --run"):
            open_net(folder).__enter__()
        holder.communicate("", timeout=300)
    with open_net(folder) as run:
        assert run.record.name == "net"


def test_a_process_that_was_killed_leaves_no_lock(folder):
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    with open_net(folder):
        pass


def test_the_lock_is_given_back_after_an_error(folder):
    with pytest.raises(RuntimeError), open_net(folder):
        raise RuntimeError
    with open_net(folder):
        pass


@pytest.mark.parametrize(("name", "recipe"), [("net", "other.py"), ("other", "recipe.py")])
def test_a_folder_of_another_recipe_is_refused_and_stays_usable(planned, name, recipe):
    with pytest.raises(ConfigError, match=rf"net: belongs to recipe\.py, not to {recipe}; give another folder with --run"):
        open_run(planned, name=name, recipe=recipe).__enter__()
    with open_net(planned) as run:
        assert run.is_done("plan", "abc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "run.json: not a RunRecord: "),
        (b"{", "run.json: not a RunRecord: "),
        (b'{"name": "net"}', "missing required field `recipe`"),
        (b'{"name": "net", "recipe": "recipe.py", "options": {}, "extra": 1}', "unknown field `extra`"),
        (b'{"name": "net", "recipe": "recipe.py", "options": {"macs": 1}}', "unknown field `macs`"),
        (
            b'{"schema": 9, "name": "net", "recipe": "recipe.py", "options": {}}',
            "schema 9, this edgecompress reads 1; name the recipe",
        ),
    ],
)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(folder, text, message):
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        open_net(folder).__enter__()
    assert (folder / "run.json").read_bytes() == text


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ConfigError, match=r"cannot be written \(.*\); choose another folder or mend its permissions"):
            open_net(path).__enter__()


def test_a_missing_file_of_the_user_is_not_called_a_folder_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cat\.jpg"), open_net(folder):
        (tmp_path / "cat.jpg").read_bytes()


def test_reading_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.json: no such file; name the recipe, and another folder with --run"):
        read_run(tmp_path)


def test_records_that_are_there_are_read_and_others_are_none(planned):
    made = CompressionPlan(
        model="net", budget=Budget(macs_ratio=0.5), layers=(), skipped=(), macs_before=2, macs=1, params_before=2, params=1
    )
    (planned / "plan.json").write_bytes(to_json(made))
    found = read_run_records(planned)
    assert found == RunRecords(plan=made)


def test_keys_depend_on_values_and_not_on_the_order_of_a_dict():
    assert hash_values({"a": 1, "b": 2}) == hash_values({"b": 2, "a": 1})
    assert len({hash_values(), hash_values(""), hash_values(None), hash_values("a", "b"), hash_values("ab"), hash_values(("a", "b"))}) == 6


def test_the_ledger_is_plain_json(planned):
    record = msgspec.json.decode((planned / "run.json").read_bytes())
    assert set(record["steps"]["plan"]) == {"made_from", "files", "seconds"}
    assert (planned / ".lock.pid").read_text() == f"{os.getpid()}\n"
