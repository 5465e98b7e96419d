"""Whatever is wrong with what a user gives: one line that says what and what to do, the code of its class, nothing half-written."""

import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.networks import Net, digits
from support.runs import command, complaint, contents

from edgecompress.runs import RunRecord, open_run, read_record, read_run

LINE = re.compile(r".+(; | must be |: write ).+")  # a fact and what to do


def in_recipe(recipe, old, new):
    text = (recipe / "recipe.py").read_text()
    assert old in text
    (recipe / "recipe.py").write_text(text.replace(old, new))


class NeedsCode:
    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def without_model(recipe):
    in_recipe(recipe, "def model():", "def network():")


def raising(recipe):
    in_recipe(recipe, "def model():", "raise RuntimeError('no licence')\n\n\ndef model():")


def raising_model(recipe):
    in_recipe(recipe, "    return net\n", "    raise RuntimeError('no licence')\n")


def leaving(recipe):
    in_recipe(recipe, "def model():", "raise SystemExit(0)\n\n\ndef model():")


def misspelt(recipe):
    in_recipe(recipe, "def model():", "def model(:")


def needing(recipe):
    in_recipe(recipe, "import torch\n", "import torch\nimport no_such_package\n")


def other_weights(recipe):
    save_file(Net(8).state_dict(), recipe / "other.safetensors")


def pickled(recipe):
    torch.save({"net": NeedsCode()}, recipe / "other.pt")


def whole_module(recipe):
    torch.save(Net(), recipe / "other.pt")


def damaged(recipe):
    (recipe / "other.safetensors").write_bytes((recipe / "weights.safetensors").read_bytes()[:500])


def decomposed(recipe):
    state = load_file(recipe / "weights.safetensors")
    weight = state.pop("body.weight")
    save_file(state | {f"body.{name}.weight": weight.clone() for name in ("first", "core", "last")}, recipe / "other.safetensors")


def already_decomposed(recipe):
    body = "    from edgecompress.factorizations import factorize as f\n\n    net.body = f(net.body, 'tucker2', (8, 8))\n    return net\n"
    in_recipe(recipe, "    return net\n", body)


def not_a_number(recipe):
    state = load_file(recipe / "weights.safetensors")
    state["body.weight"][3, 2, 1, 0] = float("nan")
    save_file(state, recipe / "weights.safetensors")


def dynamic(recipe):
    in_recipe(recipe, "torch.zeros(1, 1, 8, 8)", "torch.empty(1, 1, 0, 8)")


def no_tensor(recipe):
    in_recipe(recipe, "(torch.zeros(1, 1, 8, 8),)", "(None, 1, 8, 8)")


def other_shape(recipe):
    in_recipe(recipe, "torch.zeros(1, 1, 8, 8)", "torch.zeros(1, 3, 8, 8)")


def no_module(recipe):
    in_recipe(recipe, "    return net\n", "    return net.state_dict()\n")


RECIPES = [
    (without_model, (), 2, "has no function model(); a recipe defines model() and example_inputs()"),
    (raising, (), 2, "the import fails with RuntimeError: no licence; mend it"),
    (leaving, (), 2, "the import fails with SystemExit: 0; mend it"),
    (misspelt, (), 2, "the import fails with SyntaxError"),
    (needing, (), 2, "No module named 'no_such_package'"),
    (raising_model, (), 2, "model() fails with RuntimeError: no licence; mend it"),
    (no_module, (), 2, "model() returned OrderedDict; return a torch.nn.Module"),
    (
        other_weights,
        ("--weights", "digits/other.safetensors"),
        2,
        "stem.weight is (8, 1, 3, 3), the model has (16, 1, 3, 3)",
    ),
    (pickled, ("--weights", "digits/other.pt"), 2, "holds Python objects that would run code when loaded; save"),
    (whole_module, ("--weights", "digits/other.pt"), 2, "holds a whole module, Python objects that would run code when loaded; where"),
    (damaged, ("--weights", "digits/other.safetensors"), 2, "damaged safetensors file"),
    (decomposed, ("--weights", "digits/other.safetensors"), 2, "holds the weights of an already decomposed model; give those of the dense"),
    (already_decomposed, (), 2, "body is already decomposed; give the dense model"),
    (not_a_number, (), 2, "weight body.weight holds NaN or infinity; retrain or repair the checkpoint"),
    (dynamic, (), 2, "an example input has shape (1, 1, 0, 8); artifacts have static shapes, give every size"),
    (no_tensor, (), 2, "example_inputs() must return a tuple of tensors, one static shape each"),
    (other_shape, (), 2, "for an input of shape (1, 3, 8, 8) fails with"),
]


@pytest.mark.parametrize(("spoil", "options", "code", "message"), RECIPES, ids=lambda v: getattr(v, "__name__", None))
def test_a_spoilt_model_is_refused_in_one_line_and_nothing_is_made(recipe, edgecompress, tmp_path, spoil, options, code, message):
    spoil(recipe)
    answer = edgecompress("export", recipe, "--run", "r", *options)
    assert answer.code == code
    line = complaint(answer)
    assert message in line
    assert LINE.fullmatch(line)
    assert answer.out == ""
    assert set(contents(tmp_path / "r")) <= {"run.json", "check.json"}
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("spoil", [without_model, raising_model])
def test_debug_shows_the_traceback(recipe, tmp_path, spoil):
    spoil(recipe)
    answer = command("analyze", recipe, "--run", "r", "--debug", cwd=tmp_path)
    assert "Traceback (most recent call last)" in answer.err
    assert "ConfigError: " in answer.err or "UserCodeError: " in answer.err
    assert answer.code == 1


OPTIONS = [
    (("plan", "--method", "cp"), "unknown method 'cp'; choose from"),
    (("plan", "--macs-ratio", "1.5"), "macs_ratio 1.5: must be above 0 and at most 1"),
    (("plan", "--macs-ratio", "nan"), "macs_ratio nan: must be above 0 and at most 1"),
    (("plan", "--macs-ratio", "0.0001"), "MACs ratio 0.0001: the lowest this network reaches is"),
    (("plan", "--layer", "bodi=tucker2:8x8"), "bodi: no such layer; did you mean body?"),
    (("plan", "--layer", "body=cp:8"), "unknown method 'cp'"),
    (("plan", "--layer", "body=tucker2"), "--layer body=tucker2: write NAME=METHOD:RANK"),
    (("plan", "--layer", "body=tucker2:900x900"), "body: "),
    (("finetune", "--epochs", "-1"), "epochs -1: must be at least 0"),
    (("finetune", "--optimizer", "lion"), "unknown optimizer 'lion'; choose from sgd, adamw"),
    (("finetune", "--learning-rate", "1e30"), "lower --learning-rate"),
    (("quantize", "--calibration-samples", "0"), "calibration_samples 0: must be at least 1"),
    (("quantize", "--layer-scheme", "bodi=fp32"), "--layer-scheme bodi: no such layer; did you mean body?"),
    (("qat", "--qat-epochs", "0"), "quantization-aware training: 0 epochs; give --qat-epochs 3, say, and scheme int8-static"),
    (("quantize", "--scheme", "int4"), "unknown scheme 'int4'; choose from int8-static, int8-dynamic, int16x8, int4-weights, fp16, fp32"),
    (("export", "--target", "iphone"), "unknown target 'iphone'; choose from android, raspberry-pi"),
    (("export", "--format", "coreml"), "unknown format 'coreml'; choose from tflite, torchscript"),
    (("export", "--format", "torchscript", "--scheme", "fp16"), "none of the formats has it"),
    (("export", "--tflite-route", "toco"), "unknown TFLite route 'toco'; choose from auto, litert-torch, onnx2tf, fastest"),
    (("export", "--max-rel", "0"), "max_rel 0.0: must be above 0"),
    (("export", "--threads", "0"), "threads 0: must be at least 1"),
    (("export", "--data", "nowhere"), "nowhere: no such file or folder; give --data an ImageFolder, an .npz or idx files"),
    (("bench", "--device", "usb://1"), "usb://1"),
    (("bench", "--device", "local://pi"), "local:// takes nothing behind it; use ssh://pi"),
    (("bench", "--repetitions", "0"), "repetitions 0: must be at least 1"),
    (("bench", "--threads", "0"), "threads 0: must be at least 1"),
    (("bench", "--runner", "nowhere"), "nowhere: no such runner; give an executable"),
]


@pytest.mark.parametrize(("arguments", "message"), OPTIONS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_a_wrong_option_changes_nothing_in_the_run(run, edgecompress, arguments, message):
    before = contents(run)
    verb, *options = arguments
    answer = edgecompress(verb, run, *options)
    assert answer.code == 2
    line = complaint(answer)
    assert message in line
    assert LINE.fullmatch(line)
    assert answer.out == ""
    after = contents(run)
    assert {name: after.get(name) for name in before if name not in {"plan.json", "run.json"}} == {
        name: data for name, data in before.items() if name not in {"plan.json", "run.json"}
    }
    assert read_record(run / "run.json", RunRecord).options == read_run(run).options
    again = edgecompress("quantize", run)
    assert again.code == 0, again.err
    assert again.err.count("reused") == 5, again.err


@pytest.mark.parametrize("arguments", [["exprot"], ["export", "--epoch", "3"], ["export", "--epochs", "three"], ["verify"]])
def test_a_misspelt_command_line_is_a_short_usage_error(edgecompress, arguments):
    answer = edgecompress(*arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) <= 4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.py", "nowhere.py: no such recipe; give a Python file, a folder with recipe.py, a module name, FILE.py:FUNCTION"),
        ("no/folder", "no/folder: no such recipe"),
        ("no_module_of_this_name", "no_module_of_this_name: the import fails with ModuleNotFoundError"),
        (".", "no such recipe"),
    ],
)
def test_a_target_that_is_not_there_makes_no_run(edgecompress, tmp_path, target, message):
    answer = edgecompress("export", target)
    assert answer.code == 2
    assert message in complaint(answer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run.json"),
        ("{}", "run.json"),
        ('{"schema": 1, "name": "x", "recipe": "y", "options": {"colour": 1}}', "run.json"),
        (None, "schema"),
        ("[" * 100_000, "run.json"),
    ],
    ids=["cut", "empty", "unknown option", "another schema", "deep"],
)
@pytest.mark.parametrize("verb", ["plan", "export"])
def test_a_damaged_ledger_is_refused_and_left_as_it_is(run, edgecompress, text, message, verb):
    whole = (run / "run.json").read_text()
    text = re.sub(r'"schema": ?\d+', '"schema": 999', whole, count=1) if text is None else text
    (run / "run.json").write_text(text)
    before = contents(run)
    answer = edgecompress(verb, run)
    assert answer.code == 2
    assert message in complaint(answer)
    assert contents(run) == before
    (run / "run.json").write_text(whole)
    assert edgecompress("quantize", run).err.count("reused") == 5


def test_a_run_of_another_recipe_is_refused_and_stays_usable(run, recipe, edgecompress):
    before = contents(run)
    answer = edgecompress("export", recipe, "--run", run)
    assert answer.code == 2
    assert "belongs to" in complaint(answer)
    assert contents(run) == before
    assert edgecompress("quantize", run).err.count("reused") == 5


def test_a_run_and_another_run_folder_are_one_too_many(run, edgecompress):
    answer = edgecompress("plan", run, "--run", "elsewhere")
    assert answer.code == 2
    assert complaint(answer) == f"{run}: is a run folder already; leave out --run"


def test_two_processes_on_one_run_folder(run, edgecompress, tmp_path):
    before = contents(run)
    record = read_run(run)
    with open_run(run, name=record.name, recipe=record.recipe):
        answer = command("plan", run, "--macs-ratio", "0.9", cwd=tmp_path)
    assert answer.code == 2
    assert complaint(answer) == f"{run}: in use by process {os.getpid()}; wait for it, or give another folder with --run"
    assert contents(run) == before
    assert edgecompress("plan", run).err.rstrip().endswith("reused")


def spoil_step(run, name):
    path = run / name
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("name", ["stats.json", "plan.json", "decomposed.safetensors", "weights.safetensors"])
def test_a_damaged_file_of_a_step_is_made_again(run, edgecompress, name):
    whole = (run / name).read_bytes()
    spoil_step(run, name)
    answer = edgecompress("quantize", run)
    assert answer.code == 0, answer.err
    assert answer.err.count("reused") < 5
    assert (run / name).read_bytes() == whole or name.endswith(".json")  # seconds and milliseconds differ


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.mkdir(), "an empty folder; data are"),
        (lambda f: f.write_text("no data"), "not a form of data known here"),
        (lambda f: np.savez(f.with_suffix(".npz"), x=np.zeros(3)), ".npz"),
        (lambda f: (f / "cat").mkdir(parents=True), "no images in its class folders"),
    ],
    ids=["empty", "text", "arrays", "no images"],
)
def test_wrong_data_are_refused_before_anything_is_built_on_them(digits_recipe, edgecompress, tmp_path, make, message):
    make(tmp_path / "data")
    (data,) = tmp_path.iterdir()
    answer = edgecompress("plan", digits_recipe, "--run", "r", "--data", data)
    assert answer.code == 2
    assert message in complaint(answer)
    assert not (tmp_path / "r" / "plan.json").exists()
    assert edgecompress("plan", tmp_path / "r").code == 0


def digits_file(path, n=300):
    train, _ = digits()
    x, y = train.inputs.numpy(), train.labels.numpy()
    np.savez(path, x_train=x[:n], y_train=y[:n], x_test=x[n:], y_test=y[n:])


def test_data_that_changed_at_the_same_path_are_read_again(digits_recipe, edgecompress, tmp_path):
    data = tmp_path / "data.npz"
    digits_file(data)
    assert edgecompress("plan", digits_recipe, "--run", "r", "--data", data).code == 0
    assert edgecompress("plan", "r").err.count("reused") == 2
    digits_file(data, 250)
    assert edgecompress("plan", "r").err.count("reused") == 0
    data.unlink()
    answer = edgecompress("plan", "r")
    assert answer.code == 2
    assert complaint(answer).startswith(f"{data}: no such file or folder")


def test_without_data_nothing_is_decomposed_and_quantize_says_what_is_missing(recipe, edgecompress, tmp_path):
    text = (recipe / "recipe.py").read_text()
    (recipe / "recipe.py").write_text(text[: text.index("def _digits")].rstrip() + "\n")
    plan = edgecompress("plan", recipe, "--run", "r")
    assert plan.code == 0, plan.err
    assert "0 layers factorized" in plan.err
    assert "was refused: 0 inputs cannot show whether the network survives it" in plan.err
    tuned = edgecompress("finetune", "r")
    assert tuned.code == 0, tuned.err
    answer = edgecompress("export", "r")
    assert answer.code == 2
    assert complaint(answer).endswith("no data to calibrate and verify on; add calibration_data() or give --data")
    assert (tmp_path / "r" / "finetune.json").exists()
    assert not (tmp_path / "r" / "quantize.json").exists()
