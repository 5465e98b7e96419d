"""The command line as it is typed: one whole export, then each command on its run folder."""

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file
from support.runs import FILES, OPTIONS, QUICK, STEPS, command, complaint, contents

from edgecompress import records
from edgecompress.files import hash_file
from edgecompress.options import QAT_COMMAND_EPOCHS
from edgecompress.records import Artifact, BenchmarkResult, ExportResult, from_json, read_record
from edgecompress.reporting.document import Report
from edgecompress.runs import read_run

ARTIFACTS = ("digits-dense-fp32.tflite", "digits-dense-int8-static.tflite", "digits-fp32.tflite", "digits-int8-static.tflite")
ESCAPE = "\x1b"


def parsed(answer, kind):
    return from_json(answer.out.encode(), kind, source="stdout")


def test_one_command_leaves_artifacts_manifests_and_a_report(exported):
    folder, answer = exported
    names = {p.name for p in (folder / "artifacts").iterdir() if p.is_file()}
    assert names == {*ARTIFACTS, *(f"{name}.json" for name in ARTIFACTS), "reference.safetensors"}
    for file in (
        *(FILES[step] for step in (*STEPS, "export")),
        "report.html",
        "report.json",
        "run.json",
        "weights.safetensors",
        "calibration.safetensors",
    ):
        assert (folder / file).stat().st_size > 0, file
    assert not list(folder.rglob("*.rejected"))
    assert [p for p in folder.rglob(".*") if not p.name.startswith(".lock")] == []
    for name in ARTIFACTS:
        assert name in answer.out


@pytest.mark.parametrize("name", ARTIFACTS)
def test_every_manifest_describes_its_file(exported, name):
    path = exported[0] / "artifacts" / name
    manifest = read_record(path.with_name(f"{name}.json"), Artifact)
    assert (manifest.sha256, manifest.size_bytes) == (hash_file(path), path.stat().st_size)
    assert manifest.labels == tuple("0123456789")
    assert manifest.inputs[0].shape == (1, 8, 8, 1)
    assert manifest.parity.samples == 200
    assert manifest.data == "digits, eval"
    assert bool(manifest.plan_sha256) == (manifest.model == "compressed")
    assert manifest.top1 > 0.6
    assert manifest in read_record(exported[0] / FILES["export"], ExportResult).artifacts


def test_compressed_artifacts_are_smaller(exported):
    dense, dense_int8, fp32, int8 = ((exported[0] / "artifacts" / name).stat().st_size for name in ARTIFACTS)
    assert dense > fp32 > int8
    assert dense > dense_int8 > int8
    plan = read_record(exported[0] / "plan.json", records.CompressionPlan)
    assert plan.macs <= 0.35 * plan.macs_before


def test_piped_output_is_plain_and_notes_go_to_stderr(exported):
    _, answer = exported
    assert ESCAPE not in answer.out + answer.err
    assert answer.out.splitlines()[0].split()[:3] == ["artifact", "size", "top-1"]
    assert {line.split()[0] for line in answer.out.splitlines()[1 : 1 + len(ARTIFACTS)]} == set(ARTIFACTS)
    assert re.findall(r"^  (\w+)", answer.err, re.MULTILINE)[: len(STEPS) + 1] == [*STEPS, "export"]
    assert "open digits/report.html" in answer.err


def test_every_sample_of_a_measurement_is_kept(exported):
    found = [read_record(path, BenchmarkResult) for path in (exported[0] / "results").glob("*/*.json")]
    assert {r.artifact for r in found} == set(ARTIFACTS)
    assert len({r.session for r in found}) == 1
    assert {len(r.latency_ms) for r in found} == {100}


def test_running_again_reuses_every_step(run, edgecompress):
    before = contents(run)
    answer = edgecompress("export", run)
    assert answer.code == 0, answer.err
    assert re.findall(r"^ {2}(\w+) .* reused$", answer.err, re.MULTILINE) == [*STEPS]
    changed = {name for name, data in contents(run).items() if before.get(name) != data}
    assert changed <= {"report.html", "report.json"}


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        ("analyze", records.ModelStats),
        ("plan", records.CompressionPlan),
        ("decompose", records.DecomposeResult),
        ("finetune", records.FinetuneResult),
        ("quantize", records.QuantizeResult),
        ("export", ExportResult),
        ("report", Report),
        ("verify", tuple[Artifact, ...]),
    ],
)
def test_each_verb_works_alone_on_a_run_and_prints_a_record_or_a_table(run, edgecompress, verb, kind):
    answer = edgecompress(verb, run, "--json")
    assert answer.code == 0, answer.err
    record = msgspec.json.decode(answer.out.encode(), type=kind, strict=False)
    if verb in FILES:
        assert record == read_record(run / FILES[verb], kind)
    table = edgecompress(verb, run)
    assert table.code == 0, table.err
    assert ESCAPE not in table.out + table.err
    assert "{" not in table.out
    assert table.out.strip()


def test_steps_are_made_one_at_a_time_each_with_what_is_missing_before_it(digits_recipe, edgecompress, tmp_path):
    made = []
    for verb, *options in (["analyze"], ["decompose"], ["quantize", "--calibration-samples", "32", "--scheme", "int8-static"]):
        answer = edgecompress(verb, digits_recipe, "--run", "alone", *options, *(["--json"] if verb == "decompose" else []))
        assert answer.code == 0, answer.err
        made.append([step for step in read_run(tmp_path / "alone").steps if step != "check"])
    assert made == [["analyze"], ["analyze", "plan", "decompose"], ["analyze", "plan", "decompose", "finetune", "quantize"]]


def test_a_run_is_continued_from_another_folder(digits_recipe, edgecompress, tmp_path, monkeypatch):
    shutil.copytree(digits_recipe, tmp_path / "here")
    assert edgecompress("analyze", "here", "--run", "r", "--weights", "here/weights.safetensors").code == 0
    monkeypatch.chdir("/")
    answer = edgecompress("analyze", tmp_path / "r")
    assert answer.code == 0, answer.err
    assert re.search(r"^  analyze .* reused$", answer.err, re.MULTILINE)


def test_artifacts_are_verified_one_by_one_or_by_the_folder(exported, edgecompress):
    folder = exported[0] / "artifacts"
    one = edgecompress("verify", folder / ARTIFACTS[3], "--json")
    assert [m["path"] for m in json.loads(one.out)] == [ARTIFACTS[3]]
    every = edgecompress("verify", folder)
    assert every.code == 0, every.err
    assert [line.split()[0] for line in every.out.splitlines()[1 : 1 + len(ARTIFACTS)]] == sorted(ARTIFACTS)


def test_verify_uses_the_gate_that_the_artifact_was_published_with(run, edgecompress):
    manifest_file = run / "artifacts" / f"{ARTIFACTS[3]}.json"
    manifest = read_record(manifest_file, Artifact)
    assert edgecompress("verify", manifest_file.with_suffix("")).code == 0
    reference = run / "artifacts" / "reference.safetensors"
    state = load_file(reference)
    wrong = state["compressed_output_0"].clone()
    wrong[:8] = wrong[:8].roll(1, 1)  # 8 of 64 answers are others
    save_file(state | {"compressed_output_0": wrong}, reference)
    strict = edgecompress("verify", manifest_file.with_suffix(""))
    assert strict.code == 5
    assert "top-1 agreement 8" in complaint(strict)
    parity = msgspec.structs.replace(manifest.parity, top1_agreement=0.9, sqnr_db=0.0)
    manifest_file.write_bytes(records.to_json(msgspec.structs.replace(manifest, parity=parity)))
    assert edgecompress("verify", manifest_file.with_suffix("")).code == 0


def test_verify_refuses_a_changed_artifact(run, edgecompress):
    path = run / "artifacts" / ARTIFACTS[2]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    answer = edgecompress("verify", path)
    assert answer.code == 5
    assert "its SHA-256 is" in complaint(answer)


def test_bench_writes_every_sample_into_the_run_or_beside_you(run, edgecompress, tmp_path):
    before = set(run.rglob("results/*/*.json"))
    answer = edgecompress("bench", run, "--repetitions", "5", "--json")
    assert answer.code == 0, answer.err
    new = set(run.rglob("results/*/*.json")) - before
    assert [read_record(path, BenchmarkResult).latency_ms for path in sorted(new)] != []
    assert sorted(r["artifact"] for r in json.loads(answer.out)) == sorted(ARTIFACTS)
    alone = edgecompress("bench", run / "artifacts" / ARTIFACTS[3], "--repetitions", "5")
    assert alone.code == 0, alone.err
    (kept,) = tmp_path.glob("results/*/*.json")
    assert len(read_record(kept, BenchmarkResult).latency_ms) == 5
    assert str(kept.parent.relative_to(tmp_path)) in alone.err


def test_report_prints_its_verdict(run, edgecompress):
    for file in ("report.html", "report.json"):
        (run / file).unlink()
    answer = edgecompress("report", run)
    assert answer.code == 0, answer.err
    sentence = json.loads((run / "report.json").read_text())["verdict"]["sentence"]
    assert answer.out.splitlines()[0] == sentence
    assert sentence in (run / "report.html").read_text()


def test_devices_and_targets_are_listed(edgecompress):
    devices = edgecompress("devices")
    assert devices.code == 0
    assert devices.out.splitlines()[1].startswith("local://")
    assert json.loads(edgecompress("devices", "--json").out)[0]["url"] == "local://"
    assert [line.split()[0] for line in edgecompress("targets").out.splitlines()[1:]] == ["android", "raspberry-pi"]
    assert list(json.loads(edgecompress("targets", "--json").out)) == ["android", "raspberry-pi"]


def test_a_recipe_may_print_without_harm_to_the_record(recipe, edgecompress):
    text = (recipe / "recipe.py").read_text()
    (recipe / "recipe.py").write_text(text.replace("def model():", "print('loading')\n\n\ndef model():\n    print('building')"))
    answer = edgecompress("analyze", recipe, "--run", "r", "--json")
    assert parsed(answer, records.ModelStats).params > 0
    assert "loading" in answer.err
    assert "building" in answer.err


def test_a_module_in_the_working_directory_is_a_recipe(recipe, tmp_path):
    package = tmp_path / "my_models"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(recipe, package / "digits_net")
    answer = command("analyze", "my_models.digits_net.recipe", "--run", "r", cwd=tmp_path)
    assert answer.code == 0, answer.err
    assert "digits_net → r" in answer.err
    again = command("analyze", "r", cwd=tmp_path)
    assert re.search(r"^  analyze .* reused$", again.err, re.MULTILINE), again.err


def test_verify_and_bench_take_the_artifacts_of_the_last_export(run, edgecompress):
    """Files of earlier exports lie beside those of the last one."""
    exported = read_record(run / "export.json", ExportResult)
    fewer = msgspec.structs.replace(exported, artifacts=exported.artifacts[:1])
    (run / "export.json").write_bytes(records.to_json(fewer))
    for verb in (["verify"], ["bench", "--repetitions", "3"]):
        assert ARTIFACTS[3] not in edgecompress(*verb, run).out


@pytest.mark.parametrize("verb", ["verify", "bench"])
@pytest.mark.parametrize("what", ["empty", "analyzed"])
def test_a_folder_without_artifacts_says_how_to_make_some(digits_recipe, edgecompress, tmp_path, verb, what):
    folder = tmp_path / what
    folder.mkdir()
    if what == "analyzed":
        edgecompress("analyze", digits_recipe, "--run", folder)
    answer = edgecompress(verb, folder)
    assert answer.code == 2
    assert complaint(answer) == f"{folder}: holds no artifacts; run `edgecompress export {folder}`"


def test_the_options_of_the_first_command_are_those_of_the_next(exported):
    options = read_run(exported[0]).options
    assert (options.format, options.scheme) == (("tflite",), (OPTIONS[3], OPTIONS[5]))
    assert options.epochs == int(QUICK[1])
    assert Path(read_run(exported[0]).recipe).name == "recipe.py"


@pytest.mark.slow
def test_qat_alone_trains_the_usual_epochs_and_a_later_export_uses_the_weights(run, edgecompress):
    """Of the artifacts the int8-static one is made anew, from the trained weights."""

    def weights():
        return {a.path: a.weights_sha256 for a in read_record(run / "export.json", ExportResult).artifacts}

    before = weights()
    answer = edgecompress("qat", run, "--json")
    assert answer.code == 0, answer.err
    assert [epoch.epoch for epoch in parsed(answer, records.QatResult).epochs] == [0, 1, 2, 3]
    assert read_run(run).options.qat_epochs == QAT_COMMAND_EPOCHS == 3
    again = edgecompress("export", run)
    assert again.code == 0, again.err
    assert re.search(r"^  qat .* reused$", again.err, re.MULTILINE)
    assert {name for name, digest in weights().items() if digest != before[name]} == {ARTIFACTS[3]}
