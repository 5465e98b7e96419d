"""A search end to end: real runs of a real network, by the command line, through crashes, and by several processes at once."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import msgspec
import pytest
from support.processes import busy
from support.runs import complaint, start

import edgecompress as api
from edgecompress.data.recipe import load_recipe
from edgecompress.devices.manifests import manifest_path
from edgecompress.devices.statistics import median, ratio
from edgecompress.options import Options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.publication import publish
from edgecompress.records import Artifact, BenchmarkResult, SearchResult, read_record
from edgecompress.reporting.numbers import format_ms, format_percent
from edgecompress.runs import open_run, read_run
from edgecompress.studies.trial import ATTEMPTS, FIDELITY, MAX_REPETITIONS, UNBOUNDED, measure_in_turns

FAST = ("--format", "torchscript", "--scheme", "fp32", "--epochs", "0", "--calibration-samples", "32", "--verify-samples", "64")
SPACE = ("--vary", "macs_ratio=0.6:1.0", "--vary", "method=auto,spatial_svd", "--allocator", "latency")
DENSE = "digits-dense-fp32.ptl"
KEPT = ("stats.json", "plan.json", "decompose.json")


def stamps(run):
    return {name: (run / name).stat().st_mtime_ns for name in KEPT}


def has_finished(run, step):
    """Whether the ledger of a run lists a step."""
    return (run / "run.json").is_file() and step in read_run(run).steps


def killed(arguments, folder):
    """Kill a search without warning in its first trial; return what that one had finished."""
    first = folder / "digits/trials/0000"
    with start(*arguments, cwd=folder) as process:
        while not has_finished(first, Path(KEPT[-1]).stem):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=300)
    return stamps(first)


@pytest.fixture(scope="session")
def searched(digits_recipe, tmp_path_factory):
    """(folder, stamps of what was kept) of a search with one trial, in which it was killed and gone on with; look, and copy to change."""
    folder = tmp_path_factory.mktemp("searches")
    kept = killed(("search", digits_recipe, "--run", "digits", *FAST, *SPACE, "--trials", "1"), folder)
    api.search(digits_recipe, run=folder / "digits", trials=1)
    return folder / "digits", kept


def test_a_killed_trial_is_gone_on_with_where_it_stopped(searched):
    folder, kept = searched
    found = read_record(folder / "search.json", SearchResult)
    assert [p.trial for p in found.points] == [0]
    assert (found.failed, found.running) == ((), 0)
    assert stamps(folder / "trials/0000") == kept, "finished steps are not done again"


@pytest.mark.slow
def test_two_processes_at_once_go_on_with_a_killed_search(digits_recipe, tmp_path):
    arguments = ("search", digits_recipe, "--run", "digits", *FAST, *SPACE, "--trials", "3")
    kept = killed(arguments, tmp_path)
    with start(*arguments, cwd=tmp_path) as one, start(*arguments, cwd=tmp_path) as other:
        said = [process.communicate(timeout=300) for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), said
    found = read_record(tmp_path / "digits/search.json", SearchResult)
    assert [p.trial for p in found.points][:3] == [0, 1, 2]
    assert (found.failed, found.running) == ((), 0)
    assert stamps(tmp_path / "digits/trials/0000") == kept
    ran = sorted(int(line.split()[1]) for _, err in said for line in err.splitlines() if line.startswith("  trial"))
    assert ran == [p.trial for p in found.points], "each trial was run by one of them"


def attempts(run, artifact):
    """What a trial measured of a file, oldest first, without what its export did."""
    times = [read_record(path, BenchmarkResult) for path in (run / "results").rglob("*.json")]
    return sorted((t for t in times if t.artifact == artifact and len(t.rounds) > 1), key=lambda t: t.started_at)


def test_a_point_is_what_its_run_measured(searched):
    folder = searched[0]
    for point in read_record(folder / "search.json", SearchResult).points:
        run = folder / point.run
        made = read_record(manifest_path(run / "artifacts" / point.artifact), Artifact)
        assert (point.score.accuracy, point.score.size_bytes) == (made.top1, made.size_bytes)
        dense, ours = (attempts(run, name)[-1] for name in (DENSE, point.artifact))
        assert point.noisy == ours.noisy
        beside = ratio(ours, dense)
        assert beside.low is not None, "loaded often enough for an interval"
        assert sum(ours.latency_ms) + sum(dense.latency_ms) > 1000 or len(ours.latency_ms) == MAX_REPETITIONS
        assert point.score.latency_ms == pytest.approx(beside.ratio * median(dense.latency_ms))
        assert point.dense.latency_ms == median(dense.latency_ms)
        assert point.score.size_bytes == (run / "artifacts" / point.artifact).stat().st_size
        options = read_run(run).options
        assert (options.macs_ratio, options.method) == (point.choice["macs_ratio"], point.choice["method"])
        assert options == msgspec.structs.replace(
            Options(), format=("torchscript",), scheme=("fp32",), epochs=0, calibration_samples=32, verify_samples=64,
            allocator="latency", macs_ratio=options.macs_ratio, method=options.method, max_loss=UNBOUNDED,
        )  # fmt: skip


@pytest.fixture
def search(searched, tmp_path):
    return Path(shutil.copytree(searched[0], tmp_path / "search"))


@pytest.mark.slow
def test_what_is_noisy_is_measured_again_thrice_at_most(search, digits_recipe):
    run = search / "trials/0000"
    before = len(attempts(run, DENSE))
    recipe = load_recipe(str(digits_recipe))
    with open_run(run, name=recipe.name, recipe=recipe.source) as opened, busy():
        context = open_context(opened, recipe)
        publication = publish(context)
        measure_in_turns(context, publication, publication.exported.artifacts, "local://")
    made = attempts(run, DENSE)[before:]
    assert len(made) == ATTEMPTS
    assert all("processors busy" in str(result.noisy) for result in made)


@pytest.mark.slow
def test_a_search_goes_on_with_what_its_study_has_and_shows_the_front(search, digits_recipe, edgecompress):
    """Trials share what does not depend on the choice, and `export` takes them and has nothing left to do."""
    answer = edgecompress("search", digits_recipe, "--run", search, "--trials", "2")
    assert answer.code == 0, answer.err
    found = read_record(search / "search.json", SearchResult)
    assert [p.trial for p in found.points] == [0, 1]
    for point in found.front:
        row = next(line.split() for line in answer.out.splitlines() if line.startswith(f"{point.trial} "))
        figures = (
            format_percent(point.score.accuracy),
            format_ms(point.score.latency_ms),
            f"{point.choice['macs_ratio']:.3f}",
            point.run,
        )
        assert [figure for figure in figures if figure not in row] == []
    assert f"{len(found.front)} of 2 trials of <bdi>digits</bdi> are on the Pareto front" in (search / "search.html").read_text()
    first, second = (read_run(search / f"trials/000{n}").steps for n in range(2))
    assert {name for name in first if first[name] == second[name]} == {"check", "analyze", f"artifacts/{DENSE}"}
    answer = edgecompress("export", search / "trials/0001")
    assert answer.code == 0, answer.err
    assert read_run(search / "trials/0001").steps == second
    answer = edgecompress("search", digits_recipe, "--run", search, "--trials", "2", "--json")
    again = msgspec.json.decode(answer.out, type=SearchResult)
    assert (again.points, again.spec) == (found.points, found.spec)


OTHERS = {
    "options": (("--epochs", "1"), r"has epochs 0, not 1; give what it was begun with, or another --study and --run"),
    "range": (("--vary", "macs_ratio=0.2:0.9"), r"has macs_ratio from 0.6 to 1, not from 0.2 to 0.9"),
    "axis": (("--method", "auto"), r"has method in auto, spatial_svd, not fixed"),
    "values": (("--vary", "method=auto"), r"has method in auto, spatial_svd, not in auto"),
    "schemes": (("--scheme", "int8-static"), r"has scheme \['fp32'\], not \['int8-static'\]"),
    "sampler": (("--sampler", "nsga2"), r"has the sampler tpe, not nsga2"),
    "seed": (("--seed", "7"), r"has seed 0, not 7"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_study_of_another_search_is_refused(kind, search, digits_recipe, edgecompress):
    arguments, message = OTHERS[kind]
    answer = edgecompress("search", digits_recipe, "--run", search, "--trials", "3", *arguments)
    assert answer.code == 2
    assert re.search(message, complaint(answer))
    assert len(list(search.glob("trials/*"))) == 1


def test_a_study_of_another_network_is_refused(search, recipe, edgecompress):
    (recipe / "recipe.py").write_text((recipe / "recipe.py").read_text() + "\n\nCHANGED = True\n")
    answer = edgecompress("search", recipe, "--run", search, "--trials", "3")
    assert answer.code == 2
    assert "is of another network, recipe or data (digits); give another --study and --run" in complaint(answer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vary", "macs_ratio=0.9:0.3"), "--vary macs_ratio=0.9:0.3: give numbers"),
        (("--vary", "resolution=6,8"), "example_inputs() takes no resolution"),
        (("--trials", "0"), "trials 0: must be at least 1"),
        (("--sampler", "random"), "unknown sampler 'random'; choose from tpe, nsga2"),
        (("--device", "phone"), "'phone': unknown kind of device"),
        (("--storage", "redis://host/0"), "--storage: studies cannot lie at redis://"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_a_trial(arguments, message, digits_recipe, edgecompress, tmp_path):
    answer = edgecompress("search", digits_recipe, "--run", "new", *arguments)
    assert answer.code == 2
    assert message in complaint(answer)
    assert not list(tmp_path.glob("new/trials/*"))


SIZED = """
import torch
from torch import nn


def model():
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 10)).eval()


def example_inputs(resolution=8):
    return (torch.zeros(1, 1, resolution, resolution),)


def eval_data(resolution=8):
    return [*torch.randn(256, 1, resolution, resolution, generator=torch.Generator().manual_seed(1))]
"""


@pytest.mark.slow
def test_a_trial_has_its_own_resolution_and_without_labels_agreement_for_accuracy(postgres, edgecompress, tmp_path):
    """The study lies on a server, the run folders here."""
    (tmp_path / "sized.py").write_text(SIZED)
    fixed = ("--method", "tucker2", "--allocator", "latency", "--min-fidelity", "0.01")
    varied = ("--vary", "resolution=12", "--vary", "macs_ratio=0.5")
    answer = edgecompress("search", "sized.py", "--trials", "1", *FAST, *fixed, *varied, "--storage", postgres)
    assert answer.code == 0, answer.err
    found = read_record(tmp_path / "searches/sized/search.json", SearchResult)
    (point,) = found.points
    assert (found.study, found.storage) == ("sized", "postgresql:///postgres")
    assert not list(tmp_path.glob("searches/sized/*.sqlite3"))
    manifest = read_record(manifest_path(tmp_path / "searches/sized" / point.run / "artifacts" / point.artifact), Artifact)
    assert manifest.inputs[0].shape == (1, 1, 12, 12)
    assert manifest.top1 is None
    assert point.accuracy_of == FIDELITY
    assert point.dense.accuracy == pytest.approx(1.0, abs=1e-5)
    assert 0 < point.score.accuracy < 1.0, "the file agrees with the compressed network, not with the dense one"
    assert manifest.parity.sqnr_db > 100
    assert read_run(tmp_path / "searches/sized" / point.run).options.resolution == 12
