"""Accuracy on a device, with real artifacts on real images, and every reason why a result does not count."""

import json
import os
import shutil
import stat
import sys

import msgspec
import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from support.paths import REPOSITORY
from support.runs import FILES, complaint

from edgecompress.data import load_data
from edgecompress.devices.bench import bench
from edgecompress.devices.evaluate import evaluate
from edgecompress.errors import ConfigError, DeviceError, ParityError
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.records import Artifact, ExportResult, read_record, to_json
from edgecompress.records.evaluation import Evaluation
from edgecompress.runs import open_run, store_result

ROOT = REPOSITORY
PREBUILT = ROOT / "examples" / "prebuilt"
RECIPE = ROOT / "examples" / "resnet20_fashion_mnist"
IMAGES = RECIPE / "data"
INT8 = PREBUILT / "resnet20_fashion_mnist-int8-static.tflite"
FP32 = PREBUILT / "resnet20_fashion_mnist-fp32.tflite"
OLD_RUNTIME = ROOT / ".venv-tflite-runtime/bin/python"


@pytest.fixture(
    params=["local", pytest.param("ssh", marks=pytest.mark.xdist_group("ssh")), pytest.param("adb", marks=pytest.mark.xdist_group("adb"))]
)
def url(request):
    if request.param == "local":
        return "local://"
    return request.getfixturevalue("adb_end")().url if request.param == "adb" else request.getfixturevalue("ssh_server").url


@pytest.fixture
def copied(tmp_path):
    """A copy of the int8 artifact with its manifest, for changes."""
    for path in (INT8, manifest_path(INT8)):
        shutil.copy(path, tmp_path)
    return tmp_path / INT8.name


def manifest_path(path):
    return path.with_name(f"{path.name}.json")


def changed(path, **change):
    manifest_path(path).write_bytes(to_json(msgspec.structs.replace(read_record(manifest_path(path), Artifact), **change)))
    return path


def last_scale(path):
    """Return the quantization step of the scores according to the file itself."""
    details = Interpreter(str(path)).get_tensor_details()
    (scale,) = {d["quantization"][0] for d in details if d["dtype"] is np.int8 and list(d["shape"]) == [1, 10]}
    return scale


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def images(n=8):
    return np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)


# --- results that count ---


def test_a_device_is_as_often_right_as_this_machine(url):
    seen = []
    results = evaluate([INT8, FP32], data=IMAGES, device=url, samples=64, on_result=seen.append)
    assert list(results) == seen
    assert [(r.artifact, r.scheme, r.samples, r.classes) for r in results] == [
        (INT8.name, "int8-static", 64, 10),
        (FP32.name, "fp32", 64, 10),
    ]
    int8, fp32 = results
    assert int8.beyond_step == 0
    assert int8.quantization_step == pytest.approx(last_scale(INT8), rel=0.01)
    assert (fp32.beyond_step, fp32.quantization_step) == (None, None)
    for result in results:
        assert 0.85 < result.top1 == result.host_top1
        assert result.top1 <= result.top5 <= 1
        assert result.host.max_rel <= 1e-5
        assert (result.host.top1_agreement, result.host.samples) == (1.0, 64)
        assert result.reference.samples == 64
        assert result.reference.max_rel <= (1e-5 if result is fp32 else 0.1)
        assert result.problem == ""
        assert result.device.url == url
        assert "litert" in result.backend
        assert result.published_top1 == read_record(manifest_path(PREBUILT / result.artifact), Artifact).top1
    assert int8.data_sha256 == fp32.data_sha256
    assert "5000 images" in int8.data


def test_arm_code_computes_what_this_machine_does(pi, copied):
    """The reference file is left out, since emulated inference is slow."""
    (result,) = evaluate([copied], data=IMAGES, device=pi, samples=8)
    assert result.device.abi == "aarch64"
    assert result.device.emulated
    assert result.host.max_rel <= 1e-5  # also of int8: not one step apart
    assert result.top1 == result.host_top1 > 0.6


def test_all_images_in_several_transfers_give_the_published_accuracy():
    seen = []

    def track(iterable, description, total=None):
        seen.append((description, total))
        return iter(iterable)

    (result,) = evaluate([INT8], data=IMAGES, samples=9999, track=track)
    assert seen == [(f"{INT8.name} on local://", 5)]
    assert (result.samples, result.top1) == (5000, result.published_top1)


def test_transfers_of_any_size_and_a_recipe_in_place_of_its_data_make_no_difference():
    (whole,) = evaluate([INT8], data=IMAGES, samples=20)
    (parts,) = evaluate([INT8], data=str(RECIPE), samples=20, batch=9)
    apart = {"session": "", "started_at": "", "data": "", "device": whole.device}
    assert msgspec.structs.replace(whole, **apart) == msgspec.structs.replace(parts, **apart)
    assert parts.data.startswith("Fashion-MNIST, the shipped test images")


def error(outputs, targets):
    return {"error": (outputs.argmax(1) != targets).float().mean(), "confidence": outputs.softmax(1).amax(1).mean()}


def test_a_metric_of_one_s_own_is_computed_on_the_outputs_there():
    (plain,) = evaluate([FP32], data=IMAGES, samples=100)
    (result,) = evaluate([FP32], data=IMAGES, samples=100, batch=30, metric=error)
    assert (plain.metric, plain.metrics, plain.headline.name) == (None, {}, "top-1")
    assert (result.headline.name, result.headline.higher_is_better) == ("error", False)
    assert result.metrics == result.host_metrics
    assert result.value == result.metrics["error"] == pytest.approx(1 - plain.top1)
    assert 0.5 < result.metrics["confidence"] < 1
    assert (result.top1, result.data_sha256) == (plain.top1, plain.data_sha256)


REGRESSION = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.at, self.size = nn.Linear(8, 16), nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, x):
        x = self.body(x).relu()
        return {"at": self.at(x), "size": self.size(x)}

def model():
    return Network()

def example_inputs():
    return (torch.zeros(1, 8),)

def eval_data():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(70, 8, generator=g), torch.rand(70, 2, generator=g))

def metric(outputs, targets):
    return {"mae": (outputs["at"] - targets).abs().mean()}
"""


@pytest.mark.slow
def test_a_network_without_classes_is_scored_by_its_recipe_s_metric(tmp_path, edgecompress):
    (tmp_path / "place.py").write_text(REGRESSION)
    made = edgecompress("export", tmp_path / "place.py", "--format", "torchscript", "--scheme", "fp32", "--macs-ratio", "1", "--run", "r")
    assert made.code == 0, made.err
    (path,) = (tmp_path / "r/artifacts").glob("place-fp32.ptl")
    answer = edgecompress("evaluate", "r")
    assert answer.code == 0, answer.err
    assert "mae here" in answer.out
    records = [read_record(kept, Evaluation) for kept in tmp_path.glob("r/results/*/accuracy/*.json")]
    result = next(record for record in records if record.artifact == path.name)
    published = read_record(manifest_path(path), Artifact)
    assert result.metrics == pytest.approx(published.metrics)
    assert (result.top1, result.classes, result.problem) == (None, 0, "")
    other = npz(tmp_path, x_test=np.zeros((9, 8), "f4"), y_test=np.zeros((9, 2), "f4"))
    with pytest.raises(ConfigError, match=r"are no class scores; define metric\(outputs, targets\)"):
        evaluate([path], data=other)
    assert evaluate([path], data=other, metric=lambda y, wanted: {"mae": (y["at"] - wanted).abs().mean()})[0].value > 0


def test_torchscript_is_evaluated_too():
    (result,) = evaluate([PREBUILT / "resnet20_fashion_mnist-int8-static.ptl"], data=IMAGES, samples=40)
    assert result.top1 == result.host_top1 > 0.8
    assert "torch" in result.backend
    assert result.beyond_step == 0


def test_folders_named_as_the_labels_are_found_whatever_their_order(tmp_path):
    """Folders stand in alphabetical order, the artifact's labels do not."""
    labels = read_record(manifest_path(INT8), Artifact).labels
    samples = load_data(IMAGES, "eval", preprocessing=None, example=(torch.zeros(1, 1, 28, 28),))
    for index in range(60):
        x, label = samples[index]
        if "/" not in labels[label]:
            folder = tmp_path / "val" / labels[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((x[0] * 255).round().byte().numpy()).save(folder / f"{index}.png")
    (result,) = evaluate([INT8], data=tmp_path)
    assert result.top1 > 0.85
    (tmp_path / "val" / "Hat").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "val" / "Hat" / "1.png")
    with pytest.raises(ConfigError, match=r"class 'Hat' of the data is not among its labels"):
        evaluate([INT8], data=tmp_path)


def test_names_that_are_not_the_labels_and_missing_preprocessing_are_noted(copied, tmp_path):
    for name, pixels in zip("ab", images(2), strict=True):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / "1.png")
    changed(copied, preprocessing=None)
    (result,) = evaluate([copied], data=tmp_path / "data")
    assert "other names" in result.notes[0]
    assert "scaled to [0, 1]" in result.notes[1]
    assert result.reference is None


# --- results that do not count ---

RUNNER = """#!{python}
import hashlib, json, pathlib, subprocess, sys
import numpy as np
request = pathlib.Path(sys.argv[1])
code = subprocess.run([{python!r}, {runner!r}, request]).returncode
asked = json.loads(request.read_text())
file, reply = request.parent / asked["outputs"], request.parent / asked["reply"]
y = np.load(file)["output_0"]
{change}
np.savez(file, output_0=y)
said = json.loads(reply.read_text())
said["outputs_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
reply.write_text(json.dumps(said))
sys.exit(code)
"""


@pytest.fixture
def spoiling(tmp_path):
    """A function that makes a runner whose outputs `y` are the real runner's after `change`."""

    def make(change):
        path = tmp_path / "runner"
        path.write_text(RUNNER.format(python=sys.executable, runner=str(ROOT / "device_tests/runners/runner.py"), change=change))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


STEP = last_scale(INT8)
CHANGES = [
    (INT8, f"y += {STEP}", ""),
    (INT8, f"y[0, 3] += 2 * {STEP}", r"1 of 200 outputs over one quantization step off.*litert.* there, .*litert.* here.*--tolerance"),
    (INT8, "y = y[:, ::-1].copy()", "top-1 agreement"),
    (INT8, "y[3, 4] = np.nan", "1 of 200 outputs are NaN or infinite there"),
    (FP32, "y += np.ptp(y) * np.float32(5e-6)", ""),
    (FP32, "y[7, 7] += np.ptp(y) * 1e-4", r"largest difference 0\.0001 of the range, 1e-05 allowed"),
]


@pytest.mark.parametrize(("artifact", "change", "message"), CHANGES)
def test_a_device_that_computes_something_else_is_a_parity_error_with_a_record(artifact, change, message, spoiling):
    seen = []
    asked = {"data": IMAGES, "samples": 20, "runner": spoiling(change), "on_result": seen.append}
    if not message:
        assert evaluate([artifact], **asked)[0].problem == ""
        return
    with pytest.raises(ParityError, match=message) as caught:
        evaluate([artifact], **asked)
    assert len(seen) == 1
    assert seen[0].problem == str(caught.value)
    assert msgspec.json.decode(to_json(seen[0]), type=Evaluation) == seen[0]


def test_a_tolerance_that_is_asked_for_decides(spoiling):
    runner = spoiling(f"y[0, 3] += 2 * {STEP}")
    assert evaluate([INT8], data=IMAGES, samples=20, runner=runner, tolerance=0.05)[0].beyond_step == 1
    with pytest.raises(ParityError, match="0 allowed"):
        evaluate([INT8], data=IMAGES, samples=20, runner=runner, tolerance=0.0)


def test_outputs_of_another_shape_are_the_runners_fault(spoiling):
    with pytest.raises(DeviceError, match=r"outputs of shape .* the manifest says \[\(10,\)\]"):
        evaluate([INT8], data=IMAGES, samples=5, runner=spoiling("y = y[:, :4].copy()"))


def test_a_runtime_that_changes_between_transfers_is_no_result(spoiling):
    change = 's = json.loads(reply.read_text()); s["results"][0]["backend"] += str(y.sum()); reply.write_text(json.dumps(s))'
    with pytest.raises(DeviceError, match="runtime changed between two transfers"):
        evaluate([INT8], data=IMAGES, samples=4, batch=2, runner=spoiling(change))


def test_what_was_found_before_a_device_went_away_is_kept(adb_end, edgecompress, tmp_path, monkeypatch):
    end = adb_end()

    def keep_then_pull_the_cable(home, record):
        end.process.kill()
        end.process.wait()
        return store_result(home, record)

    monkeypatch.setattr("edgecompress.cli.evaluate.store_result", keep_then_pull_the_cable)
    answer = edgecompress("evaluate", INT8, FP32, "--data", IMAGES, "--samples", 5, "--device", end.url, "--json")
    assert answer.code == 6
    complaint(answer)
    (kept,) = tmp_path.glob("results/*/accuracy/*.json")
    assert json.loads(answer.out) == [json.loads(kept.read_text())]


def test_a_runtime_that_computes_an_artifact_wrongly_is_found_out():
    """tflite-runtime 2.14.0 loads current int8-dynamic files without a warning and computes random scores."""
    if not OLD_RUNTIME.exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{OLD_RUNTIME} is missing; `make test` sets it up")
    seen = []
    artifacts = [PREBUILT / "resnet20_fashion_mnist-int8-dynamic.tflite", FP32]
    with pytest.raises(ParityError, match=r"int8-dynamic\.tflite.*\(tflite-runtime 2\.14\.0 there, ai-edge-litert"):
        evaluate(artifacts, data=IMAGES, samples=64, python=str(OLD_RUNTIME), on_result=seen.append)
    timed = bench(artifacts, python=str(OLD_RUNTIME), repetitions=3, warmup_s=0)
    assert [any("computes int8-dynamic files wrongly" in note for note in result.notes) for result in timed] == [True, False]
    wrong, right = seen  # the second was still evaluated
    assert wrong.top1 < 0.3
    assert wrong.host_top1 > 0.85
    assert right.problem == ""


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


BAD = [
    (lambda f: ([], IMAGES), "no artifacts"),
    (lambda f: ([f / "missing.tflite"], IMAGES), "no such artifact"),
    (lambda f: ([f / INT8.name], f / "nowhere"), "no such file or folder"),
    (lambda f: ([f / INT8.name], None), "lies in no run folder.*--data"),
    (lambda f: ([f / INT8.name], npz(f, x_test=images())), "no labels"),
    (lambda f: ([f / INT8.name], npz(f, x_test=images()[:, :20], y_test=np.zeros(8, int))), r"\(1, 20, 28\).*input is \(1, 28, 28\)"),
    (lambda f: ([f / INT8.name], npz(f, x_test=images(), y_test=np.full(8, 10))), "labels from 10 to 10"),
    (lambda f: ([f / INT8.name], f), "not a form of data|no class folders|no images"),
    (lambda f: ([changed(f / INT8.name, outputs=())], IMAGES), "no class scores"),
    (lambda f: ([changed(f / INT8.name, inputs=read_record(manifest_path(INT8), Artifact).inputs * 2)], IMAGES), "takes 2 inputs"),
    (lambda f: ([changed(f / INT8.name, sha256="0" * 64)], IMAGES), "changed after export"),
    (lambda f: (manifest_path(f / INT8.name).unlink(), ([f / INT8.name], IMAGES))[1], r"\.json is not beside it"),
    (lambda f: ([f / INT8.name], recipe_without_data(f)), r"has no eval_data\(\)"),
    (lambda f: ([f / INT8.name], Endless()), "has no length"),
]


def recipe_without_data(folder):
    path = folder / "bare.py"
    path.write_text("import torch\ndef model(): ...\ndef example_inputs(): return (torch.zeros(1, 1, 28, 28),)\n")
    return path


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_cannot_be_scored_is_refused_before_the_device_is_asked(make, message, copied):
    artifacts, data = make(copied.parent)
    with pytest.raises(ConfigError, match=message) as caught:
        evaluate(artifacts, data=data, device="adb://nothing-there")
    assert ";" in str(caught.value)


@pytest.mark.parametrize("option", [{"samples": 0}, {"batch": 0}, {"threads": 0}, {"tolerance": -1.0}, {"timeout_s": 0.0}])
def test_an_option_out_of_range_is_refused(option):
    with pytest.raises(ConfigError, match=rf"{next(iter(option))} .*: must be (at least|above) [01]; "):
        evaluate([INT8], data=IMAGES, **option)


def test_a_missing_runner_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such runner"):
        evaluate([INT8], data=IMAGES, runner=tmp_path / "runner")


# --- the command ---


@pytest.fixture
def made_run(tmp_path):
    """A run folder with the int8 artifact, of the example's recipe."""
    folder = tmp_path / "run"
    (folder / "artifacts").mkdir(parents=True)
    for path in (INT8, manifest_path(INT8), PREBUILT / "reference.safetensors"):
        shutil.copy(path, folder / "artifacts")
    with open_run(folder, name="resnet20_fashion_mnist", recipe=str(RECIPE / "recipe.py")) as opened:
        opened.set_options(opened.record.options)
    (folder / FILES["export"]).write_bytes(to_json(ExportResult(artifacts=(read_record(manifest_path(INT8), Artifact),))))
    return folder


def test_a_run_is_scored_on_its_recipes_data_and_every_record_is_kept(edgecompress, made_run):
    for _ in range(2):
        answer = edgecompress("evaluate", made_run, "--samples", 20)
        assert answer.code == 0, answer.err
        assert "20 samples of Fashion-MNIST" in answer.err
        assert [word for word in (INT8.name, "100%", "equal") if word not in answer.out] == []
    kept = sorted(made_run.glob("results/*/accuracy/*.json"))
    assert len(kept) == 2
    assert read_record(kept[0], Evaluation).samples == 20
    assert read_run_records(made_run).results == ()  # a report takes latencies from there, and is not disturbed


def test_json_is_the_record_also_of_a_failure_which_exits_with_5(edgecompress, tmp_path, spoiling):
    runner = spoiling("y = y[:, ::-1].copy()")
    answer = edgecompress("evaluate", INT8, "--data", IMAGES, "--samples", 20, "--runner", runner, "--json")
    assert answer.code == 5
    assert "departs from this machine" in complaint(answer)
    (record,) = json.loads(answer.out)
    (kept,) = tmp_path.glob("results/*/accuracy/*.json")
    assert json.loads(kept.read_text()) == record


def test_a_run_made_from_python_asks_for_data(edgecompress, tmp_path):
    folder = tmp_path / "run"
    (folder / "artifacts").mkdir(parents=True)
    for path in (INT8, manifest_path(INT8)):
        shutil.copy(path, folder / "artifacts")
    with open_run(folder, name="net", recipe="python") as opened:
        opened.set_options(opened.record.options)
    answer = edgecompress("evaluate", folder / "artifacts" / INT8.name)
    assert answer.code == 2
    assert "made from Python" in complaint(answer)
