"""Networks of other tasks than labelled classification come through the commands as what they were, or are refused with the numbers."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.other_recipes import ANSWERS, AUXILIARY, DETECTORS, FLOAT_TARGETS, FOLDERS, TINY, UNLABELLED, write_recipe
from support.runs import command, complaint, contents

from edgecompress.artifacts.execution import run_artifact
from edgecompress.data.recipe import load_recipe
from edgecompress.network.fidelity import measure_fidelity
from edgecompress.network.surgery import forward
from edgecompress.records import Artifact, CompressionPlan, ExportResult, FinetuneResult, read_record

TFLITE = ("--format", "tflite", "--tflite-route", "litert-torch", "--threads", "1")
FP32, INT8 = ("--scheme", "fp32"), ("--scheme", "int8-static")
BOUNDS = {"depth-map": 0.90, "denoised-signal": 0.90, "sentence-embedder": 0.95}


def artifacts(run):
    """Return the manifests of a run's published files, by their names."""
    return {path.name.removesuffix(".json"): read_record(path, Artifact) for path in (run / "artifacts").glob("*.tflite.json")}


def compressed(run):
    return {name: made for name, made in artifacts(run).items() if made.model == "compressed"}


def finetune(edgecompress, recipe, ratio, *, run="run", epochs=1, data=()):
    """Return the answer of `finetune` for a network planned at a ratio of the MACs."""
    planned = edgecompress("plan", recipe, "--run", run, "--macs-ratio", ratio, *data)
    assert planned.code == 0, planned.err
    return edgecompress("finetune", run, "--epochs", epochs)


def finetuned(run):
    return read_record(run / "finetune.json", FinetuneResult)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """A folder with two runs of an embedder without training data: `bounded` by default options, `unbounded` with `--min-fidelity 0`."""
    folder = tmp_path_factory.mktemp("embedder")
    recipe = write_recipe(folder / "embedder", UNLABELLED["sentence-embedder"])
    bounded = command("export", recipe, "--run", "bounded", *TFLITE, *FP32, cwd=folder)
    assert bounded.code == 0, bounded.err
    shutil.copytree(folder / "bounded", folder / "unbounded")  # the dense file is reused
    unbounded = command("export", "unbounded", "--min-fidelity", "0", cwd=folder)
    assert unbounded.code == 0, unbounded.err
    (folder / "unbounded.txt").write_text(unbounded.out + unbounded.err)
    return folder


@pytest.mark.slow
def test_an_embedder_without_training_data_keeps_the_bound(embedder):
    (made,) = compressed(embedder / "bounded").values()
    assert [each.kind for each in made.fidelity.outputs] == ["embedding"]
    assert made.fidelity.outputs[0].kept >= BOUNDS["sentence-embedder"]


@pytest.mark.slow
def test_without_a_bound_the_budget_is_spent_and_it_is_said_what_is_kept(embedder):
    (made,) = compressed(embedder / "unbounded").values()
    kept = made.fidelity.outputs[0].kept
    plan = read_record(embedder / "unbounded" / "plan.json", CompressionPlan)
    assert plan.macs / plan.macs_before <= 0.36
    assert kept < BOUNDS["sentence-embedder"]
    assert f"{kept:.1%}" in (embedder / "unbounded.txt").read_text()


@pytest.mark.slow
def test_the_fidelity_that_is_told_is_that_of_the_file(embedder):
    recipe = load_recipe(str(embedder / "embedder"))
    x = recipe.eval_data().tensors
    dense = forward(recipe.model(), x)
    for run in ("bounded", "unbounded"):
        (made,) = compressed(embedder / run).values()
        outputs, _ = run_artifact(embedder / run / "artifacts" / made.path, made.inputs, made.outputs, x)
        cosine = torch.nn.functional.cosine_similarity(outputs[0], dense[0]).mean()
        assert made.fidelity.outputs[0].cosine == pytest.approx(float(cosine), abs=1e-5)
        assert made.fidelity == measure_fidelity(outputs, dense, made.kinds, min_kept=made.fidelity.outputs[0].min_kept)


@pytest.mark.parametrize("name", ["depth-map", "denoised-signal"])
def test_a_plan_without_training_data_keeps_the_bound_or_changes_nothing(edgecompress, tmp_path, name):
    recipe = write_recipe(tmp_path / name, UNLABELLED[name])
    answer = edgecompress("plan", recipe, "--run", "run")
    assert answer.code == 0, answer.err
    plan = read_record(tmp_path / "run" / "plan.json", CompressionPlan)
    assert [each.kind for each in plan.outputs] == ["values"]
    assert plan.macs / plan.macs_before > 0.36  # random weights have no low ranks
    assert any("90% must be kept" in note for note in plan.notes)
    asked = edgecompress("plan", "run", "--min-fidelity", "0")
    assert asked.code == 0, asked.err
    spent = read_record(tmp_path / "run" / "plan.json", CompressionPlan)
    assert spent.macs / spent.macs_before <= 0.36


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depth-map", "denoised-signal"])
def test_what_is_published_without_training_data_keeps_the_bound(tmp_path, name):
    recipe = write_recipe(tmp_path / name, UNLABELLED[name])
    answer = command("export", recipe, "--run", "run", *TFLITE, cwd=tmp_path)
    assert answer.code == 0, answer.err
    assert len(compressed(tmp_path / "run")) >= 3
    for made in artifacts(tmp_path / "run").values():
        assert made.fidelity.outputs[0].kept >= BOUNDS[name]


@pytest.mark.parametrize("name", FLOAT_TARGETS)
def test_float_targets_are_targets(edgecompress, tmp_path, name):
    recipe = write_recipe(tmp_path / "net", FLOAT_TARGETS[name])
    answer = finetune(edgecompress, recipe, 0.6)
    assert answer.code == 0, answer.err
    assert [each.kind for each in read_record(tmp_path / "run" / "plan.json", CompressionPlan).outputs] == ["values"]
    assert finetuned(tmp_path / "run").top1 is None


@pytest.mark.slow
def test_landmarks_are_exported_or_refused_with_what_is_kept(tmp_path):
    recipe = write_recipe(tmp_path / "net", FLOAT_TARGETS["points"])
    answer = command("export", recipe, "--run", "run", "--macs-ratio", "0.6", "--epochs", "1", *TFLITE, *FP32, cwd=tmp_path)
    assert answer.code in (0, 5), answer.err
    assert all(made.fidelity.holds for made in compressed(tmp_path / "run").values())
    if answer.code == 5:
        assert re.search(r"output_0 \(values\) keeps [\d.]+%.*90% must be kept", complaint(answer))
        assert list((tmp_path / "run" / "artifacts").glob("*.rejected"))


@pytest.mark.parametrize("name", AUXILIARY)
def test_heads_that_only_training_has_do_not_matter(edgecompress, tmp_path, name):
    recipe = write_recipe(tmp_path / "net", AUXILIARY[name])
    answer = finetune(edgecompress, recipe, 0.7)
    assert answer.code == 0, answer.err
    assert len(finetuned(tmp_path / "run").epochs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_scores_beside_boxes_are_kept_in_int8(tmp_path, name):
    recipe = write_recipe(tmp_path / "net", DETECTORS[name])
    answer = command("export", recipe, "--run", "run", "--macs-ratio", "1", *TFLITE, *INT8, cwd=tmp_path)
    assert answer.code == 0, answer.err
    made = artifacts(tmp_path / "run")["net-int8-static.tflite"]
    assert made.fidelity.outputs[0].channel is not None
    assert made.fidelity.outputs[0].kept >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_integers_are_judged_by_agreement(tmp_path, name):
    recipe = write_recipe(tmp_path / "net", ANSWERS[name])
    answer = command("export", recipe, "--run", "run", "--macs-ratio", "1", *TFLITE, *INT8, cwd=tmp_path)
    assert answer.code == 0, answer.err
    made = artifacts(tmp_path / "run")["net-int8-static.tflite"]
    assert made.parity.integer_agreement >= 0.98
    (integers,) = (each for each in made.fidelity.outputs if each.kind == "classes")
    assert integers.agreement >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_network_of_microseconds_is_measured(tmp_path, name):
    recipe = write_recipe(tmp_path / "net", TINY[name])
    answer = command("export", recipe, "--run", "run", "--macs-ratio", "1", *TFLITE, *FP32, cwd=tmp_path)
    assert answer.code == 0, answer.err
    assert "misbehaves" not in answer.err
    assert re.search(r"net-fp32\.tflite .*1\.00×|net-fp32\.tflite .*×", answer.out), answer.out
    assert read_record(tmp_path / "run" / "export.json", ExportResult).refused == ()


NAMES = {
    "numbers": tuple(str(i) for i in range(11)),
    "words": ("dark", "dim", "bright", "blinding"),
}


def write_folders(path, names):
    """Write images whose brightness is that of their class, in a folder a class."""
    for split, count in (("train", 6), ("val", 4)):
        for k, name in enumerate(names):
            folder = path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8), round(255 * k / (len(names) - 1)), np.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize("names", NAMES)
def test_class_folders_are_numbered_as_the_recipe_names_its_classes(edgecompress, tmp_path, names):
    recipe = write_recipe(tmp_path / "net", FOLDERS.format(names=NAMES[names]))
    write_folders(tmp_path / "images", NAMES[names])
    answer = finetune(edgecompress, recipe, 0.6, epochs=0, data=("--data", "images"))
    assert answer.code == 0, answer.err
    assert finetuned(tmp_path / "run").dense_top1 == 1


def test_a_class_folder_that_the_recipe_does_not_name_is_refused(edgecompress, tmp_path):
    recipe = write_recipe(tmp_path / "net", FOLDERS.format(names=NAMES["words"]))
    write_folders(tmp_path / "images", ("dark", "dim", "bright", "black"))
    answer = edgecompress("finetune", recipe, "--data", "images", "--run", "run", "--epochs", "0")
    assert answer.code == 2
    assert "class 'black' of the data is not among its labels (dark, dim, bright, blinding); name it as they do" in complaint(answer)


ENDS = {"logits": "nn.Identity()", "probabilities": "nn.Softmax(1)", "log-probabilities": "nn.LogSoftmax(1)"}


def test_probabilities_are_recovered_as_well_as_logits(digits_recipe, edgecompress, tmp_path):
    accuracies = {}
    for name, end in ENDS.items():
        recipe = tmp_path / name
        recipe.mkdir()
        for file in digits_recipe.iterdir():
            if file.is_file():
                (recipe / file.name).write_bytes(file.read_bytes())
        text = (recipe / "recipe.py").read_text().replace("import torch\n", "import torch\nfrom torch import nn\n", 1)
        (recipe / "recipe.py").write_text(text.replace("    return net\n", f"    return nn.Sequential(net, {end})\n"))
        answer = finetune(edgecompress, recipe, 0.3, run=f"{name}-run", epochs=3)
        assert answer.code == 0, answer.err
        accuracies[name] = finetuned(tmp_path / f"{name}-run").top1
    assert max(accuracies.values()) - min(accuracies.values()) < 0.03, accuracies
    assert min(accuracies.values()) > 0.9


def test_other_labels_are_not_answered_with_earlier_accuracies(recipe, edgecompress, tmp_path):
    options = ("--run", "run", "--epochs", "1", "--epoch-samples", "200")
    first = edgecompress("finetune", recipe, *options)
    assert first.code == 0, first.err
    before = finetuned(tmp_path / "run")
    text = (recipe / "recipe.py").read_text()
    (recipe / "recipe.py").write_text(text.replace("raw.target[first:last]", "(raw.target[first:last] + 1) % 10"))
    again = edgecompress("finetune", recipe, *options)
    assert again.code == 0, again.err
    after = finetuned(tmp_path / "run")
    assert before.dense_top1 > 0.9
    assert after.dense_top1 < 0.1
    assert not re.search(r"^ {2}finetune .*reused$", again.err, re.MULTILINE)


def test_a_branch_on_values_is_refused_before_anything_long(edgecompress, tmp_path):
    body = AUXILIARY["a tuple in training"].replace("y = self.fc(", "a = self.body[3](a) if a.mean() > 0.1 else a\n        y = self.fc(")
    recipe = write_recipe(tmp_path / "net", body)
    answer = edgecompress("export", recipe, "--run", "run", "--epochs", "2")
    assert answer.code == 3
    assert "recipe.py:" in complaint(answer)
    assert "plan.json" not in contents(tmp_path / "run")
