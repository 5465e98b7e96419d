"""Parity numbers, the gate that they must pass, and the check of published artifacts."""

import math
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from support.paths import REPOSITORY
from support.require import unavailable
from support.runs import QUICK
from torch import nn

from edgecompress.artifacts.gate import require_parity
from edgecompress.artifacts.verify import verify
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import ConfigError, ParityError, ToolchainError
from edgecompress.files import hash_file
from edgecompress.network.parity import measure_parity, relax_gate
from edgecompress.network.reference import write_reference
from edgecompress.network.weights import read_state, save_state
from edgecompress.records import Artifact, Parity, read_record, to_json
from edgecompress.targets import SCHEMES, Gate

REFERENCE = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 0.0]])


def test_equal_outputs_are_perfect():
    parity = measure_parity((REFERENCE.clone(),), (REFERENCE,))
    assert parity == Parity(max_abs=0.0, max_rel=0.0, sqnr_db=200.0, top1_agreement=1.0, samples=2)


def test_parity_numbers_equal_those_computed_by_hand():
    outputs = REFERENCE.clone()
    outputs[1, 0] = -2.0  # differs by 4, and changes the arg-max of the second sample
    parity = measure_parity((outputs,), (REFERENCE,))
    assert parity.max_abs == 4
    assert parity.max_rel == 4 / (3 - -1)
    assert parity.sqnr_db == pytest.approx(10 * math.log10((0 + 1 + 9 + 4 + 1 + 0) / 16))
    assert parity.top1_agreement == 0.5


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 2, 2)])
def test_outputs_that_are_no_scores_have_no_agreement(shape):
    assert measure_parity((torch.ones(shape),), (torch.ones(shape),)).top1_agreement is None


def test_each_of_several_outputs_is_judged_by_its_kind():
    boxes = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    parity = measure_parity((REFERENCE + 0.01, boxes * 1.5), (REFERENCE, boxes))
    assert parity.top1_agreement == 1
    assert parity.values_sqnr_db == parity.sqnr_db == pytest.approx(-20 * math.log10(0.5))
    message = "SQNR 6.0 dB of output_1, 20 dB required"
    with pytest.raises(ParityError, match=re.escape(message)):
        require_parity(parity, SCHEMES["int8-static"].gate, subject="net.tflite")
    require_parity(
        measure_parity((REFERENCE * 1.5, boxes * 1.05), (REFERENCE, boxes)),
        SCHEMES["int8-static"].gate,
        subject="scores may be far in value",
    )


def test_sqnr_of_a_zero_reference():
    assert measure_parity((torch.ones(2, 3),), (torch.zeros(2, 3),)).sqnr_db == -200
    assert measure_parity((torch.zeros(2, 3),), (torch.zeros(2, 3),)).sqnr_db == 200


def test_constant_outputs_are_compared_absolutely():
    assert measure_parity((torch.full((2, 3), 1.5),), (torch.ones(2, 3),)).max_rel == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_other_dtypes_are_compared_in_double(dtype):
    assert measure_parity((REFERENCE.to(dtype),), (REFERENCE.double(),)).max_abs == 0


@pytest.mark.parametrize(
    ("outputs", "reference", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"outputs have shape \(2, 3\), the model's \(3, 2\)"),
        (torch.full((2, 3), math.nan), torch.zeros(2, 3), "outputs hold NaN or infinity where the model's are finite"),
        (torch.full((2, 3), math.inf), torch.zeros(2, 3), "outputs hold NaN or infinity where the model's are finite"),
        (torch.zeros(2, 3), torch.full((2, 3), math.nan), "the model's own outputs hold NaN"),
        (torch.full((2, 3), math.nan), torch.full((2, 3), math.nan), "the model's own outputs hold NaN"),
    ],
)
def test_incomparable_outputs_are_refused(outputs, reference, message):
    with pytest.raises(ParityError, match=message):
        measure_parity((outputs,), (reference,))


def parity(**numbers):
    return Parity(**{"max_abs": 0.0, "max_rel": 0.0, "sqnr_db": 60.0, "top1_agreement": 1.0, "samples": 100} | numbers)


@pytest.mark.parametrize(
    ("scheme", "numbers"),
    [
        ("fp32", {"max_rel": 1e-4, "top1_agreement": 0.5}),
        ("fp16", {"max_rel": 1e-2, "top1_agreement": 0.99}),
        ("int8-static", {"max_rel": 0.5, "top1_agreement": 0.98}),
        ("int8-dynamic", {"top1_agreement": None, "values_sqnr_db": 20.0}),
    ],
)
def test_the_limit_itself_passes(scheme, numbers):
    require_parity(parity(**numbers), SCHEMES[scheme].gate, subject="net.tflite")


@pytest.mark.parametrize(
    ("scheme", "numbers", "message"),
    [
        ("fp32", {"max_rel": 1.1e-4}, "largest difference 0.00011 of the output range, 0.0001 allowed"),
        ("fp16", {"max_rel": 0.02, "top1_agreement": 0.9}, "0.02 of the output range, 0.01 allowed; top-1 agreement 90.00%"),
        ("int8-static", {"top1_agreement": 0.9799}, "top-1 agreement 97.99% on 100 samples, 98% required"),
        ("int8-dynamic", {"top1_agreement": None, "values_sqnr_db": 19.9}, "SQNR 19.9 dB, 20 dB required"),
    ],
)
def test_a_number_beyond_its_limit_is_refused_with_both_numbers(scheme, numbers, message):
    with pytest.raises(ParityError, match=rf"net\.tflite: departs from the model: .*{re.escape(message)}.*; export it again"):
        require_parity(parity(**numbers), SCHEMES[scheme].gate, subject="net.tflite")


def test_every_scheme_has_a_gate():
    for scheme in SCHEMES.values():
        assert scheme.gate.max_rel is not None or scheme.gate.min_agreement is not None
    require_parity(parity(max_rel=9.0), Gate(), subject="no limits")


def test_the_reference_holds_inputs_and_each_models_outputs(tmp_path):
    torch.manual_seed(0)
    models = {"dense": nn.Linear(3, 2).eval(), "compressed": nn.Linear(3, 2).eval()}
    inputs = torch.randn(100, 3)
    write_reference(tmp_path, (inputs,), models)
    state = read_state(tmp_path / "reference.safetensors")
    assert torch.equal(state["input_0"], inputs[:64])
    assert all(torch.equal(state[f"{name}_output_0"], model(inputs[:64])) for name, model in models.items())


def test_the_reference_of_large_inputs_stays_small(tmp_path):
    write_reference(tmp_path, (torch.zeros(40, 3, 224, 224),), {"dense": nn.Flatten()})
    assert len(read_state(tmp_path / "reference.safetensors")["input_0"]) == 6
    write_reference(tmp_path, (torch.zeros(1, 3, 700, 700),), {"dense": nn.Flatten()})
    assert len(read_state(tmp_path / "reference.safetensors")["input_0"]) == 1


# Published artifacts, verified again


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "head": b"\xff" * 64 + content[64:],
        "tail": content[:-2000] + b"\xff" * 2000,
    }


@pytest.fixture
def published(tiny, tiny_samples):
    """The tiny models with their manifests and the reference that `verify` reads."""
    inputs, outputs = (torch.from_numpy(array) for array in tiny_samples)
    save_state({"input_0": inputs, "dense_output_0": outputs}, tiny / "reference.safetensors")
    return tiny


def forge(path: Path, content: bytes) -> None:
    """Damage a file, and make its manifest agree."""
    path.write_bytes(content)
    manifest = manifest_path(path)
    made = msgspec.structs.replace(read_record(manifest, Artifact), sha256=hash_file(path), size_bytes=len(content))
    manifest.write_bytes(to_json(made))


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny-int8.tflite", "tiny.ptl"])
def test_a_changed_file_fails_by_its_hash_and_the_original_passes(published, name):
    path = published / name
    assert verify(path).parity.samples == 16
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ParityError, match=rf"{name}: its SHA-256 is \w+…, the manifest says \w+…; export or copy it again"):
        verify(path)


@pytest.mark.parametrize("how", ["empty", "truncated", *(pytest.param(how, marks=pytest.mark.slow) for how in ("head", "tail"))])
@pytest.mark.parametrize("name", ["tiny.tflite", "tiny.ptl"])
def test_a_damaged_file_with_a_matching_hash_is_refused_by_its_runtime(published, name, how):
    path = published / name
    forge(path, damaged(path.read_bytes())[how])
    before = {file.name: file.read_bytes() for file in published.iterdir()}
    with pytest.raises(ConfigError, match=rf"^{re.escape(name)}: .* refused it: .*; export it again"):
        verify(path)
    assert {file.name: file.read_bytes() for file in published.iterdir()} == before


def test_a_file_with_other_weights_departs_from_the_model(published):
    path = published / "tiny.tflite"
    content = bytearray(path.read_bytes())
    model = flatbuffer_utils.read_model_from_bytearray(content)
    largest = max((b for b in model.buffers if b.data is not None), key=lambda b: len(b.data))
    largest.data = np.frombuffer(largest.data.tobytes(), np.float32)[::-1].copy().view(np.uint8)
    forge(path, bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    with pytest.raises(ParityError, match=r"tiny\.tflite: departs from the model: largest difference"):
        verify(path)


def test_a_runtime_that_dies_is_a_toolchain_error_that_names_the_signal(published, tmp_path):
    runtime = tmp_path / "python"
    runtime.write_text("#!/bin/sh\nkill -SEGV $$\n")
    runtime.chmod(0o755)
    with pytest.raises(ToolchainError, match=r"^tiny\.tflite: the runner crashed \(SIGSEGV\): the file is damaged"):
        verify(published / "tiny.tflite", also_python=str(runtime))


OLD_RUNTIME = REPOSITORY / ".venv-tflite-runtime/bin/python"
PREBUILT = REPOSITORY / "examples/prebuilt"


def old_runtime() -> str:
    if not OLD_RUNTIME.exists():
        unavailable("no .venv-tflite-runtime: make it with `make .venv-tflite-runtime/installed`")
    return str(OLD_RUNTIME)


def test_the_gate_finds_wrong_outputs_of_tflite_runtime():
    """tflite-runtime 2.14.0 loads today's int8-dynamic files, says nothing, and answers at random."""
    path = PREBUILT / "resnet20_fashion_mnist-int8-dynamic.tflite"
    assert verify(path).parity.top1_agreement > 0.95
    with pytest.raises(ParityError, match=r"int8-dynamic\.tflite in tflite-runtime 2\.14\.0: departs .*; here it agrees, so that runtime"):
        verify(path, also_python=old_runtime())


def test_a_note_tells_that_another_runtime_agrees():
    found = verify(PREBUILT / "resnet20_fashion_mnist-fp32.tflite", also_python=old_runtime())
    assert found.notes[-1] == "also verified in tflite-runtime 2.14.0: top-1 agreement 100.00% on 64 samples"


def test_a_runtime_too_old_for_the_file_is_a_toolchain_error(tmp_path):
    for name in ("reference.safetensors", "resnet20_fashion_mnist-fp32.tflite", "resnet20_fashion_mnist-fp32.tflite.json"):
        shutil.copy(PREBUILT / name, tmp_path)
    path = tmp_path / "resnet20_fashion_mnist-fp32.tflite"
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(path.read_bytes()))
    (code,) = (code for code in model.operatorCodes if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED)
    code.version = 13  # tflite-runtime 2.14 knows 10
    forge(path, bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    assert verify(path).parity.top1_agreement == 1
    with pytest.raises(ToolchainError, match=r"(?s)fp32\.tflite in \S+/python: .*tflite-runtime 2\.14\.0 refused it: .*another scheme"):
        verify(path, also_python=old_runtime())


def test_a_missing_interpreter_is_refused():
    with pytest.raises(ConfigError, match=r"^nowhere/python: no such interpreter"):
        verify(PREBUILT / "resnet20_fashion_mnist-fp32.tflite", also_python="nowhere/python")


def test_limits_on_few_samples_allow_two_standard_errors():
    assert relax_gate(SCHEMES["int8-static"].gate, 64).min_agreement == pytest.approx(0.98 - 2 * math.sqrt(0.98 * 0.02 / 64))
    assert relax_gate(SCHEMES["fp32"].gate, 64) == SCHEMES["fp32"].gate


@pytest.mark.slow
def test_export_publishes_only_tflite_files_that_the_other_runtime_agrees_on(edgecompress, recipe, tmp_path):
    asked = ("--format", "tflite", "--tflite-route", "litert-torch", "--scheme", "fp32", "--scheme", "int8-dynamic", "--run", "r")
    said = edgecompress("export", recipe, *asked, "--also-python", old_runtime(), *QUICK)
    made = {path.name: read_record(path, Artifact) for path in (tmp_path / "r" / "artifacts").glob("*.tflite.json")}
    assert said.code == 5, said.err
    assert set(made) == {"digits-dense-fp32.tflite.json", "digits-fp32.tflite.json"}
    assert all(any(note.startswith("also verified in tflite-runtime 2.14.0: top-1") for note in each.notes) for each in made.values())
    assert "digits-int8-dynamic.tflite in tflite-runtime 2.14.0: departs from the model: top-1 agreement" in said.err
    assert (tmp_path / "r" / "artifacts" / "digits-int8-dynamic.tflite.rejected").is_file()
