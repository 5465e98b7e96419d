"""Steps that depend on each other: what is redone, what is refused, and what is left when a run ends before its time."""

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from support.networks import Net
from support.runs import FILES, QUICK, STEPS, command, complaint, contents, start

from edgecompress.files import hash_file
from edgecompress.records import ExportResult, FinetuneResult, read_record
from edgecompress.runs import read_run

DENSE, FP32, INT8 = "digits-dense-fp32.tflite", "digits-fp32.tflite", "digits-int8-static.tflite"
INTERRUPTED = "interrupted; every finished step is kept, the same command goes on from there"
FULL = "no space left on the device; free some and run the same command again, finished steps are kept"
TRAINING = ("--epochs", "12", "--epoch-samples", "1400", "--seed", "0")
CHECKPOINT = "finetune.checkpoint.safetensors"


def steps(answer, *, reused):
    """The steps a command told of, those it reused or those it made."""
    lines = re.findall(rf"^ {{2}}({'|'.join(FILES)}) .*?(reused|[\d.]+ s)$", answer.err, re.MULTILINE)
    return [name for name, spent in lines if (spent == "reused") == reused]


@pytest.mark.parametrize(
    ("verb", "options", "redone"),
    [
        ("plan", ["--macs-ratio", "0.6"], [*STEPS[1:]]),
        ("plan", ["--layer", "body=tucker2:8x8"], [*STEPS[1:]]),
        ("plan", ["--method", "grouped_svd:slices=4", "--macs-ratio", "0.8"], [*STEPS[1:]]),
        ("plan", ["--data-aware"], [*STEPS[1:]]),
        ("plan", ["--min-fidelity", "0.5"], []),  # of use without training data alone
        ("finetune", ["--epochs", "1"], ["finetune", "quantize"]),
        ("finetune", ["--optimizer", "adamw"], ["finetune", "quantize"]),
        ("quantize", ["--calibration-samples", "10"], ["quantize"]),
        ("quantize", ["--scheme", "fp32"], ["quantize"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_an_option_redoes_what_depends_on_it_and_no_more(run, edgecompress, verb, options, redone):
    before = contents(run)
    first = edgecompress(verb, run, *options)
    second = edgecompress("quantize", run)
    assert steps(first, reused=False) + steps(second, reused=False) == redone, first.err + second.err
    now = contents(run)
    for step in STEPS:
        assert (now[FILES[step]] == before[FILES[step]]) == (step not in redone), step
    assert {name for name in before if name.startswith("artifacts/") and now[name] != before[name]} == set()


def test_what_a_fit_falls_short_of_is_said_each_time_and_stands_in_the_report(run, edgecompress):
    edgecompress("plan", run, "--macs-ratio", "0.95", "--layer", "body=cp3:20:starts=1,sweeps=2")
    for _ in range(2):
        answer = edgecompress("decompose", run)
        assert re.search(r"^    body: ALS .*error.*sensitivity", answer.err, re.MULTILINE), answer.err
    edgecompress("report", run)
    assert [note for note in json.loads((run / "report.json").read_text())["notes"] if note["source"] == "decompose"]


@pytest.mark.parametrize("change", ["recipe.py", "network.py", "parts/__init__.py", "weights.safetensors"])
def test_a_changed_source_or_checkpoint_is_seen(recipe, edgecompress, change):
    (recipe / "parts").mkdir()
    (recipe / "parts" / "__init__.py").touch()
    file = recipe / "recipe.py"
    file.write_text(file.read_text().replace("from .network", "from . import parts  # noqa\nfrom .network"))
    for reused in (False, True):
        answer = edgecompress("analyze", recipe, "--run", "r")
        assert steps(answer, reused=reused) == ["analyze"], answer.err
    if change.endswith(".py"):
        (recipe / change).write_text((recipe / change).read_text() + "\n# edited\n")
    else:
        save_file(Net().state_dict(), recipe / change)
    assert steps(edgecompress("analyze", "r"), reused=False) == ["analyze"]


@pytest.mark.slow
def test_another_gate_converts_anew_and_what_fails_it_is_set_aside(run, edgecompress):
    before = contents(run)
    answer = edgecompress("export", run, "--max-rel", "1e-12", "--tflite-route", "litert-torch")
    assert answer.code == 5
    line = complaint(answer)
    assert re.search(r"digits-dense-fp32.tflite: departs from the model: largest difference \S+ of the output range, 1e-12 allowed", line)
    assert line.endswith("no layer is at fault: allow more with --max-rel")
    assert steps(answer, reused=True) == [*STEPS]
    folder = run / "artifacts"
    published = {p.name for p in folder.iterdir() if p.is_file()}
    aside = {f"{name}.rejected{end}" for name in (DENSE, FP32) for end in ("", ".json")}
    assert published == {INT8, f"{INT8}.json", "reference.safetensors"} | aside
    assert (folder / INT8).read_bytes() == before[f"artifacts/{INT8}"]
    result = read_record(run / "export.json", ExportResult)
    assert [a.path for a in result.artifacts] == [INT8]
    assert [(r.path, r.error) for r in result.refused] == [(DENSE, "ParityError"), (FP32, "ParityError")]
    assert f"refused: {FP32}: " in answer.err
    assert FP32 in (run / "report.html").read_text()
    assert edgecompress("verify", run).code == 0


def test_a_model_that_cannot_be_exported_is_refused_before_it_is_planned(recipe, edgecompress, tmp_path):
    text = (recipe / "network.py").read_text()
    (recipe / "network.py").write_text(
        text.replace("    def forward(self, x):\n", "    def forward(self, x):\n        x = -x if x.sum() > 1e9 else x\n")
    )
    options = ("--run", "r", "--format", "torchscript", "--scheme", "fp32", *QUICK)
    answer = edgecompress("export", recipe, *options)
    assert answer.code == 3
    assert re.search(r"digits: torch.export cannot take it: .+; ", complaint(answer))
    assert not (tmp_path / "r" / "plan.json").exists()
    answer = edgecompress("analyze", "r")
    assert answer.code == 0, answer.err
    assert steps(answer, reused=False) == ["analyze"]


# A run that ends before its time


def alive(path):
    """What a file of /proc says; nothing once its process has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid):
    found = []
    with suppress(FileNotFoundError):  # the process ends while it is looked at
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in alive(task).split():
                found += [int(child), *descendants(child)]
    return found


def until(process, ready):
    """Wait for `ready()` while the process runs."""
    while not (found := ready()):
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"ended before it was interrupted: {process.stderr.read()}")
    return found


def said(process, start_of_line):
    for line in process.stderr:
        if line.startswith(start_of_line):
            return
    pytest.fail(f"never said {start_of_line!r}")


def program(process, name):
    """The children of a process, once `name` is among their arguments."""
    children = descendants(process.pid)
    return children if any(name in alive(Path(f"/proc/{child}/cmdline")) for child in children) else []


def gone(pid):
    status = alive(Path(f"/proc/{pid}/status"))
    return not status or re.search(r"^State:\s+[ZX]", status, re.MULTILINE) is not None


def interrupt(process, by=signal.SIGINT):
    process.send_signal(by)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"edgecompress: {INTERRUPTED}"


@pytest.mark.parametrize(("line", "finished"), [("digits → r", []), ("  analyze", ["analyze"])], ids=["analyze", "plan"])
def test_ctrl_c_in_an_early_step_keeps_those_before(digits_recipe, edgecompress, tmp_path, line, finished):
    with start("quantize", digits_recipe, "--run", "r", cwd=tmp_path) as process:
        said(process, line)
        interrupt(process)
    done = list(read_run(tmp_path / "r").steps) if (tmp_path / "r" / "run.json").exists() else []
    done = [step for step in done if step != "check"]
    assert done[: len(finished)] == finished  # on a busy machine the next step may end before the signal is there
    left = {Path(name).name for name in contents(tmp_path / "r")}
    assert left <= {"run.json", "check.json", *(FILES[step] for step in done)}
    assert steps(edgecompress("plan", digits_recipe, "--run", "r"), reused=True) == done


@pytest.fixture(scope="session")
def uninterrupted(exported, tmp_path_factory):
    """What fine-tuning comes to when nobody stops it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    answer = command("finetune", Path(read_run(exported[0]).recipe), "--run", "r", *TRAINING, cwd=folder)
    assert answer.code == 0, answer.err
    return folder / "r"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_fine_tuning_goes_on_from_its_last_whole_epoch_to_the_same_bits(run, uninterrupted, edgecompress, tmp_path, how):
    before = contents(run)
    with start("finetune", run, *TRAINING, cwd=tmp_path) as process:
        until(process, lambda: (run / CHECKPOINT).exists())
        if how == signal.SIGINT:
            interrupt(process)
        else:
            process.kill()
            process.communicate()
    with safe_open(run / CHECKPOINT, "pt") as file:
        epochs = msgspec.json.decode(file.metadata()["progress"])[0]
    assert 2 <= len(epochs) < 13
    left = {
        name: data for name, data in contents(run).items() if name not in {CHECKPOINT, "run.json"} and not Path(name).name.startswith(".")
    }
    assert left == {name: data for name, data in before.items() if name != "run.json"}
    answer = edgecompress("finetune", run)
    assert answer.code == 0, answer.err
    assert steps(answer, reused=True) == [*STEPS[:3]]
    assert msgspec.to_builtins(read_record(run / "finetune.json", FinetuneResult))["epochs"][: len(epochs)] == tuple(epochs)
    assert hash_file(run / "weights.safetensors") == hash_file(uninterrupted / "weights.safetensors")
    assert not (run / CHECKPOINT).exists()


def test_ctrl_c_while_converting_leaves_no_converter_and_no_file(run, edgecompress, tmp_path):
    before = contents(run)
    with start("export", run, "--format", "torchscript", "--scheme", "fp32", cwd=tmp_path) as process:
        children = until(process, lambda: program(process, "to_torchscript.py"))
        interrupt(process)
    assert all(map(gone, children))
    new = set(contents(run)) - set(before)
    assert {name for name in new if not name.startswith("artifacts/logs/")} == set()
    assert steps(edgecompress("quantize", run), reused=True) == [*STEPS]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_an_interrupt_while_measuring_leaves_no_runner_and_no_result(run, tmp_path, by):
    before = contents(run)
    with start("bench", run, "--repetitions", "1000000", cwd=tmp_path) as process:
        children = until(process, lambda: program(process, "runner.py"))
        interrupt(process, by)
    assert all(map(gone, children))
    assert contents(run) == before


def test_a_test_that_fails_leaves_no_command_and_no_runner(run, tmp_path):
    with suppress(AssertionError), start("bench", run, "--repetitions", "1000000", cwd=tmp_path) as process:
        children = until(process, lambda: program(process, "runner.py"))
        raise AssertionError
    assert all(map(gone, [process.pid, *children]))


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 2 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True, timeout=300)


def fill(disk):
    """Take every byte that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def test_a_full_disk_stops_any_step_in_one_line_and_nothing_is_lost(digits_recipe, edgecompress, small_disk):
    run = small_disk / "run"
    options = {
        "finetune": ["--epochs", "1"],
        "qat": ["--qat-epochs", "1"],
        "export": ["--format", "torchscript", "--scheme", "fp32", "--max-loss", "100"],
    }
    for i, step in enumerate(FILES):
        given = options.get(step, [])
        target = run if i else digits_recipe
        where = [] if i else ["--run", run]
        before = contents(run)
        ballast = fill(small_disk)
        answer = edgecompress(step, target, *where, *given)
        assert answer.code == 1, (step, answer.err)
        assert complaint(answer).endswith(FULL), step
        left = contents(run)
        assert {n: d for n, d in left.items() if d and n != "run.json" and "/logs/" not in n} == {
            n: d for n, d in before.items() if n != "run.json"
        }
        ballast.unlink()
        again = edgecompress(step, target, *where, *given)
        assert again.code == 0, again.err
        kept = [*STEPS[: min(i, 4)]]  # the schemes of an export are those it calibrates for
        assert steps(again, reused=True)[: len(kept)] == kept, again.err
