"""Laws of runs of several stages: what each starts from and leaves, what is redone, and that a killed run goes on in any of them."""

import json
import re
import subprocess
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from support.runs import complaint, contents, start, write_recipe
from support.stages import never_more

from edgecompress.data.recipe import load_recipe
from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS
from edgecompress.factorizations.decompose import decompose
from edgecompress.files import hash_file
from edgecompress.options import Options, update_options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.networks import load_stage
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.records import CompressionPlan, DecomposeResult, FinetuneResult, read_record
from edgecompress.reporting.report import report
from edgecompress.runs import open_run

PARTS = {"plan": CompressionPlan, "decompose": DecomposeResult, "finetune": FinetuneResult}
QUICK = {"macs_ratio": 0.25, "stages": 3, "epochs": 2, "epoch_samples": 400}


@contextmanager
def steps(folder, recipe, **options):
    """The context of a run, and a list of the steps that it makes anew."""
    made = []
    with open_run(folder, name="digits", recipe=recipe.source) as run:
        run.set_options(update_options(run.record.options, options))
        yield (
            open_context(
                run, recipe, on_step=lambda name, _record, _seconds, reused: None if reused or name == "check" else made.append(name)
            ),
            made,
        )


@pytest.fixture(scope="module")
def recipe(digits_recipe):
    return load_recipe(str(digits_recipe))


@pytest.fixture(scope="module")
def staged(recipe, tmp_path_factory):
    """A run of three stages; look, and copy to change."""
    folder = tmp_path_factory.mktemp("staged") / "run"
    with steps(folder, recipe, **QUICK) as (context, made):
        run_steps(context, "finetune")
        assert made == ["analyze", *(f"stages/{n}/{part}" for n in (1, 2) for part in PARTS), *PARTS]
    return folder


def places(folder):
    return [folder / "stages" / "1", folder / "stages" / "2", folder]


def records(folder, part):
    return [read_record(place / f"{part}.json", PARTS[part]) for place in places(folder)]


def test_the_stages_of_a_run_go_down_to_its_budget(staged):
    plans = records(staged, "plan")
    for was, made in pairwise(plans):
        never_more(was, made)
    assert [p.macs <= ratio * p.macs_before for p, ratio in zip(plans, (0.4, 0.28, 0.25), strict=True)] == [True] * 3
    assert plans[0].macs > plans[-1].macs
    assert [len(r.epochs) - 1 for r in records(staged, "finetune")] == [2, 2, 2]
    assert [r.seed for r in records(staged, "finetune")] == [0, 1, 2]
    assert len({r.dense_top1 for r in records(staged, "finetune")}) == 1
    assert "stage 3: errors and losses are against the network fine-tuned in stage 2" in plans[2].notes
    assert not any(note.startswith("stage") for note in plans[0].notes)


def test_a_plan_predicts_the_errors_that_its_stage_reaches(staged):
    for made, result in zip(records(staged, "plan"), records(staged, "decompose"), strict=True):
        assert {step.layer: pytest.approx(step.relative_error, rel=1e-5) for step in made.layers} == result.relative_errors
        assert result.mean_relative_error == pytest.approx(sum(result.relative_errors.values()) / len(made.layers))


def test_a_layer_that_keeps_its_rank_keeps_its_fine_tuned_factors_bit_for_bit(staged):
    kept = 0
    for number in (1, 2):
        earlier, later = places(staged)[number - 1 : number + 1]
        tuned, begun = load_file(earlier / "weights.safetensors"), load_file(later / "decomposed.safetensors")
        was = {step.layer: step.rank for step in read_record(earlier / "plan.json", CompressionPlan).layers}
        errors = read_record(later / "decompose.json", DecomposeResult).relative_errors
        for step in read_record(later / "plan.json", CompressionPlan).layers:
            if step.rank != was.get(step.layer):
                assert errors[step.layer] > 0
                continue
            kept += 1
            assert (step.relative_error, errors[step.layer]) == (0, 0)
            assert step.why.endswith("as it is")
            for name in [name for name in begun if name.startswith(f"{step.layer}.")]:
                assert torch.equal(begun[name], tuned[name]), name
    assert kept


def test_what_is_fine_tuned_in_a_stage_is_what_the_next_one_decomposes(staged, recipe):
    """Of a layer factorized further, the error that was reached is that against its fine-tuned kernel, not against the dense one."""
    with steps(staged, recipe) as (context, made):
        dense, trained_to = context.dense, load_stage(context, 1)
        begun, _ = decompose(dense, read_record(places(staged)[1] / "plan.json", CompressionPlan), fit=False)
        begun.load_state_dict(load_file(places(staged)[1] / "decomposed.safetensors"))
        assert made == []
    was = {step.layer: step for step in read_record(places(staged)[0] / "plan.json", CompressionPlan).layers}
    errors = read_record(places(staged)[1] / "decompose.json", DecomposeResult).relative_errors
    checked = 0
    for name, error in errors.items():
        if name in was and error > 0:
            rebuild = METHODS[was[name].method].reconstruct
            kernel, now = rebuild(trained_to.get_submodule(name)), rebuild(begun.get_submodule(name))
            original = dense.get_submodule(name).weight.detach().double()
            assert away(now, kernel) == pytest.approx(error, rel=1e-4)
            assert away(now, original) != pytest.approx(error, rel=1e-3)
            checked += 1
    assert checked


def away(made, weight):
    return float(((made - weight).norm() / weight.norm()).detach())


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({}, []),
        ({"stages": 2}, ["plan", "decompose", "finetune"]),
        ({"stages": 4}, ["stages/3/plan", "stages/3/decompose", "stages/3/finetune", "plan", "decompose", "finetune"]),
        ({"epochs": 1}, ["stages/1/finetune", *(f"stages/2/{part}" for part in PARTS), *PARTS]),
        ({"weakening": 0.5}, [*(f"stages/{n}/{part}" for n in (1, 2) for part in PARTS), *PARTS]),
        ({"stages": 1}, [*PARTS]),
    ],
    ids=lambda v: " ".join(f"{a}={b}" for a, b in v.items()) if isinstance(v, dict) else "",
)
def test_an_option_redoes_only_what_depends_on_it(staged, recipe, tmp_path, change, redone):
    folder = copied(staged, tmp_path)
    with steps(folder, recipe, **change) as (context, made):
        run_steps(context, "finetune")
        assert made == redone
    with steps(folder, recipe) as (context, made):
        run_steps(context, "finetune")
        assert made == []


def copied(folder, to):
    for name, data in contents(folder).items():
        path = to / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return to / "copy"


def test_factors_follow_the_network_before_even_where_its_plan_stays(recipe, tmp_path):
    """With every layer given by hand the second plan says the same whatever the first stage was trained to."""
    fixed = ("stem=dense", "body=tucker2:8x8", "mix=svd:8", "head=dense")
    for epochs in (1, 2):
        with steps(tmp_path / "run", recipe, macs_ratio=0.9, stages=2, layer=fixed, epochs=epochs, epoch_samples=100) as (context, made):
            run_steps(context, "finetune")
            tuned, begun = (load_file(tmp_path / "run" / name) for name in ("stages/1/weights.safetensors", "decomposed.safetensors"))
            assert all(torch.equal(value, tuned[name]) for name, value in begun.items())
    assert made == ["stages/1/finetune", *PARTS]


def test_one_stage_after_three_is_what_one_stage_is(staged, recipe, tmp_path):
    runs = copied(staged, tmp_path), tmp_path / "one"
    for folder in runs:
        with steps(folder, recipe, **{**QUICK, "stages": 1}) as (context, _):
            run_steps(context, "finetune")
            report(context.run.folder, read_run_records(context.run.folder))
    assert not (runs[1] / "stages").exists()
    for name in ("plan.json", "decompose.json", "decomposed.safetensors", "weights.safetensors"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    assert [json.loads((folder / "report.json").read_text())["stages"] for folder in runs] == [[], []]
    assert not any('id="stages"' in (folder / "report.html").read_text() for folder in runs)


def test_the_report_has_a_row_for_each_stage(staged, recipe, tmp_path):
    folder = copied(staged, tmp_path)
    with steps(folder, recipe) as (context, _):
        report(context.run.folder, read_run_records(context.run.folder))
    rows = json.loads((folder / "report.json").read_text())["stages"]
    assert [row["number"] for row in rows] == [1, 2, 3]
    for row, made, trained_to in zip(rows, records(folder, "plan"), records(folder, "finetune"), strict=True):
        assert (row["macs"], row["params"], row["layers"]) == (made.macs, made.params, len(made.layers))
        assert (row["before"], row["after"], row["epochs"]) == (trained_to.before_top1, trained_to.top1, 2)
    page = (folder / "report.html").read_text()
    assert re.search(r'id="stages".*?scope="row">1<.*scope="row">2<.*scope="row">3<', page, re.DOTALL)


@pytest.mark.slow
def test_killed_in_the_second_stage_it_goes_on_to_the_same_bits(recipe, digits_recipe, edgecompress, tmp_path):
    training = ("--stages", "3", "--epochs", "4", "--seed", "0")
    checkpoint = tmp_path / "killed" / "stages" / "2" / "finetune.checkpoint.safetensors"
    with start("finetune", digits_recipe, "--run", "killed", *training, cwd=tmp_path) as process:
        while not checkpoint.exists():
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                pytest.fail(process.stderr.read())
        process.kill()
        process.communicate()
    assert checkpoint.exists()
    assert not (tmp_path / "killed" / "weights.safetensors").exists()
    answer = edgecompress("finetune", digits_recipe, "--run", "killed")
    assert answer.code == 0, answer.err
    reused = re.findall(r"^ {2}(\w+ ?\d?) .* reused$", answer.err, re.MULTILINE)
    assert [name.strip() for name in reused] == ["analyze", "plan 1", "decompose 1", "finetune 1", "plan 2", "decompose 2"]
    assert not checkpoint.exists()
    assert edgecompress("finetune", digits_recipe, "--run", "whole", *training).code == 0
    ours, whole = places(tmp_path / "killed"), places(tmp_path / "whole")
    for place, other in zip(ours, whole, strict=True):
        assert hash_file(place / "weights.safetensors") == hash_file(other / "weights.safetensors")


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, "stages 0: must be at least 1"),
        ({"stages": 2, "epochs": 0}, "stages 2: nothing is trained between them with 0 epochs; give --epochs, or ask for one stage"),
        ({"weakening": 0.0}, "weakening 0.0: must be above 0 and at most 1"),
        ({"weakening": 1.1}, "weakening 1.1: must be above 0 and at most 1"),
        ({"weakening": float("nan")}, "weakening nan: must be above 0 and at most 1"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        update_options(Options(), options)


def test_no_stage_loses_more_than_max_drop_before_its_fine_tuning(edgecompress, digits_recipe, tmp_path):
    assert edgecompress("plan", digits_recipe, "--run", "r", "--max-drop", "3").code == 0
    answer = edgecompress("finetune", "r", "--stages", "2", "--epochs", "1", "--epoch-samples", "400")
    assert answer.code == 0, answer
    plans = [read_record(tmp_path / "r" / place / "plan.json", CompressionPlan) for place in ("stages/1", "")]
    never_more(*plans)
    for made in plans:
        (note,) = [note for note in made.notes if "points of" in note]
        assert "; 3 are allowed" in note or note.startswith("nothing is worth decomposing"), note
        found = re.search(r"it loses (-?[\d.]+) points", note)
        assert found is None or float(found[1]) <= 3
    assert plans[0].layers
    assert read_record(tmp_path / "r" / "finetune.json", FinetuneResult).epochs[0].top1 is not None


def test_stages_without_training_data_are_refused(edgecompress, tmp_path):
    recipe = write_recipe(tmp_path / "digits")
    file = recipe / "recipe.py"
    file.write_text(file.read_text().replace("def train_data", "def calibration_data"))
    answer = edgecompress("plan", recipe, "--run", "r", "--stages", "2")
    assert answer.code == 2
    assert re.search(r"no training data for --stages; add train_data\(\), give --data, or ask for one stage", complaint(answer))


def test_a_budget_out_of_reach_is_refused_before_anything_is_trained(edgecompress, digits_recipe, tmp_path):
    answer = edgecompress("plan", digits_recipe, "--run", "r", "--stages", "3", "--macs-ratio", "0.01")
    assert answer.code == 2
    assert "the lowest this network reaches is" in complaint(answer)
    assert {Path(name).name for name in contents(tmp_path / "r")} == {"run.json", "check.json", "stats.json"}


def test_the_options_are_kept_as_json(staged):
    assert msgspec.json.decode((staged / "run.json").read_bytes())["options"]["stages"] == 3
