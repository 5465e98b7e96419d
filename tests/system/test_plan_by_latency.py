"""Cost tables and budgets at the command line: measured once, planned by, and refused when they are of something else."""

import shutil
from pathlib import Path

import msgspec
import pytest
from support.runs import command, complaint

from edgecompress.errors import DeviceError
from edgecompress.records import Artifact, CompressionPlan, CostTable, Inspection, from_json, read_record, to_json
from edgecompress.reporting.numbers import format_factor

MEASURED = ("--scheme", "int8-static")
SLOWER = {"int8-static": 1, "fp32": 3}


@pytest.fixture(scope="module")
def measured(digits_recipe, tmp_path_factory):
    """A table measured through the command line, with the answer."""
    folder = tmp_path_factory.mktemp("costs")
    options = ("--run", folder / "run", *MEASURED, "--table", folder / "costs.json", "--noisy")
    return folder / "costs.json", command("profile", digits_recipe, *options, cwd=folder)


def write_table(measured, path):
    """Write a measured table with milliseconds by a rule, since a layer of this size takes microseconds: those of its MACs and one."""
    found = read_record(measured, CostTable)
    layers = {
        geometry: {
            form: {scheme: msgspec.structs.replace(c, ms=(1e-5 * c.macs + 0.01) * SLOWER[scheme]) for scheme, c in costs.items()}
            for form, costs in forms.items()
        }
        for geometry, forms in found.layers.items()
    }
    networks = {
        name: {scheme: msgspec.structs.replace(c, ms=2.0, layers_ms=1.9) for scheme, c in costs.items()}
        for name, costs in found.networks.items()
    }
    path.write_bytes(to_json(msgspec.structs.replace(found, layers=layers, networks=networks)))
    return path


@pytest.fixture
def table(measured, tmp_path):
    return write_table(measured[0], tmp_path / "costs.json")


def test_profile_shows_each_layer_and_where_the_table_is(measured):
    path, answer = measured
    assert answer.code == 0, answer.err
    assert f"kept in {path}" in answer.err
    lines = answer.out.splitlines()
    assert lines[0].split() == ["layer", "scheme", "dense", "ms", "forms", "slower", "than", "dense", "fastest"]
    assert [line.split()[0] for line in lines[1:]] == [*["Conv2d"] * 3, "Linear", "digits"]
    assert "digits whole, dense" in lines[-1]


def test_a_second_profile_measures_nothing_and_prints_the_same_table_as_json(measured, edgecompress, digits_recipe, tmp_path):
    path, _ = measured
    before = path.read_bytes()
    answer = edgecompress("profile", digits_recipe, "--run", tmp_path / "run", *MEASURED, "--table", path, "--json")
    assert answer.code == 0, answer.err
    found = from_json(answer.out.encode(), CostTable, source="stdout")
    assert len(found.layers) == 4
    assert read_record(path, CostTable).layers == found.layers
    assert before == path.read_bytes()


def test_a_speed_up_is_planned_from_a_table_alone_and_shown_with_its_milliseconds(table, edgecompress, digits_recipe, tmp_path):
    answer = edgecompress("plan", digits_recipe, "--run", tmp_path / "run", "--speedup", "1.3", "--table", table)
    assert answer.code == 0, answer.err
    made = read_record(tmp_path / "run" / "plan.json", CompressionPlan)
    assert made.latency_ms_before == 2.0
    assert made.latency_ms <= 2.0 / 1.3
    assert made.scheme == "int8-static"
    assert answer.out.splitlines()[0].split() == ["layer", "form", "rank", "MACs", "ratio", "ms", "error", "loss", "why"]
    assert f"int8-static on {made.measured_on}: {format_factor(2.0 / made.latency_ms)} as fast as dense, predicted" in answer.out
    assert "× as fast predicted" in answer.err
    again = edgecompress("plan", tmp_path / "run")
    assert again.code == 0, again.err
    assert "reused" in again.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--speedup", "50"), 2, "speed-up 50: the lowest this network reaches is"),
        (("--speedup", "0.5"), 2, "speedup 0.5: must be at least 1"),
        (("--latency-ms", "0"), 2, "latency_ms 0.0: must be above 0"),
        (("--speedup", "1.3", "--threads", "2"), 2, "its threads are 1, here they are 2; give --threads 1"),
        (
            ("--speedup", "1.3", "--cost-scheme", "fp16"),
            2,
            "digits as a whole was not measured in fp16; run `edgecompress profile` with --device",
        ),
        (("--speedup", "1.3", "--cost-scheme", "int3"), 2, "unknown cost scheme 'int3'; choose from"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_what_a_table_cannot_give_is_refused(table, edgecompress, digits_recipe, tmp_path, options, code, said):
    answer = edgecompress("plan", digits_recipe, "--run", tmp_path / "run", "--table", table, *options)
    assert answer.code == code
    assert said in complaint(answer)


def test_a_table_of_another_device_is_refused_where_there_is_one(table, edgecompress, digits_recipe, tmp_path):
    other = msgspec.structs.replace(read_record(table, CostTable), device="a board, arm64-v8a")
    table.write_bytes(to_json(other))
    answer = edgecompress("plan", digits_recipe, "--run", tmp_path / "run", "--table", table, "--device", "local://", "--speedup", "1.1")
    assert answer.code == 2
    assert "its device is a board, arm64-v8a, here it is" in complaint(answer)
    assert read_record(table, CostTable) == other


def test_no_table_and_no_such_device(edgecompress, digits_recipe, tmp_path):
    missing = edgecompress("plan", digits_recipe, "--run", tmp_path / "run", "--table", tmp_path / "none.json", "--speedup", "1.1")
    assert (missing.code, "none.json" in complaint(missing)) == (2, True)
    gone = edgecompress("plan", digits_recipe, "--run", tmp_path / "run", "--device", "adb://127.0.0.1:1", "--speedup", "1.1")
    assert gone.code == DeviceError.exit_code, gone.err


@pytest.mark.slow
def test_layers_that_a_plan_keeps_in_float_are_in_float_in_the_file(measured, edgecompress, digits_recipe, tmp_path):
    table = Path(shutil.copy(measured[0], tmp_path))
    more = edgecompress("profile", digits_recipe, "--run", tmp_path / "run", "--scheme", "fp32", "--table", table, "--noisy")
    assert more.code == 0, more.err
    write_table(table, table)
    asked = ("--latency-ms", "2.4", "--max-drop", "90", "--mixed-precision", "--table", table, "--epochs", "1", "--epoch-samples", "200")
    scheme = ("--format", "tflite", "--scheme", "int8-static", "--calibration-samples", "64", "--verify-samples", "100")
    answer = edgecompress("export", digits_recipe, "--run", tmp_path / "run", *asked, *scheme)
    assert answer.code == 0, answer.err
    made = read_record(tmp_path / "run" / "plan.json", CompressionPlan)
    manifest = read_record(tmp_path / "run" / "artifacts" / "digits-int8-static.tflite.json", Artifact)
    assert made.schemes
    assert made.schemes.items() <= manifest.quant.layers.items()
    found = edgecompress("inspect", tmp_path / "run" / "artifacts" / "digits-int8-static.tflite", "--json")
    assert {c.dtype for c in from_json(found.out.encode(), Inspection, source="stdout").constants} >= {"float32", "int8"}
