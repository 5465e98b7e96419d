"""Inspection of a file agrees with its converter's reply; a damaged or hostile file is refused and does nothing else."""

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.converter_models import Residual, settled
from support.paths import REPOSITORY
from support.runs import complaint

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import run_converter
from edgecompress.artifacts.inspect import inspect
from edgecompress.errors import ConfigError, ToolchainError
from edgecompress.network.exported import to_program, write_program
from edgecompress.records import ConversionReply, ConversionRequest, Inspection, Preprocessing, from_json
from edgecompress.targets import FORMATS

ROOT = REPOSITORY
PREBUILT = ROOT / "examples" / "prebuilt" / "resnet20_fashion_mnist-int8-static"
LABELS = tuple("abcdefghij")
PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.25,))
SAMPLES = 8
ESCAPE = "\x1b"
Made = Callable[[str], tuple[Path, ConversionReply]]
Inspected = Callable[[str], Inspection]
# The others' toolchains take long to load, to convert as well as to read.
QUICK = ("tflite", "torchscript")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make an int8-static file of a format, once; return it with its converter's reply."""
    folder = tmp_path_factory.mktemp("inspect")
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 1, 28, 28)
    write_program(to_program(settled(Residual(), (x,)), (x[:1],)), folder / "residual.pt2")
    save_file({"input_0": x}, folder / "residual.safetensors")

    @cache
    def make(name: str) -> tuple[Path, ConversionReply]:
        path = folder / f"residual{FORMATS[name].suffix}"
        request = ConversionRequest(
            program=str(folder / "residual.pt2"),
            output=str(path),
            scheme="int8-static",
            calibration=str(folder / "residual.safetensors"),
            name="residual",
            preprocessing=PREPROCESSING,
            labels=LABELS,
        )
        return path, run_converter(name, request)

    return make


@pytest.fixture(scope="module")
def inspected(made: Made) -> Inspected:
    return cache(lambda name: inspect(made(name)[0]))


@pytest.mark.parametrize("name", EVERY)
def test_inspection_agrees_with_the_converters_reply(made: Made, inspected: Inspected, name: str) -> None:
    (path, reply), found = made(name), inspected(name)
    assert (found.format, found.path, found.size_bytes) == (name, path.name, path.stat().st_size)
    assert [(spec.shape, spec.dtype, spec.layout) for spec in found.inputs] == [(s.shape, s.dtype, s.layout) for s in reply.inputs]
    assert [(spec.shape, spec.dtype) for spec in found.outputs] == [(s.shape, s.dtype) for s in reply.outputs]
    assert found.bytecode_version == reply.bytecode_version
    if name != "executorch":  # there XNNPACK's own names stand in the file
        assert found.ops == reply.ops
    if found.delegation is not None and reply.ops:
        assert {left.op for left in found.delegation.undelegated} == {left.op for left in reply.undelegated}


@pytest.mark.parametrize("name", EVERY)
def test_name_normalisation_and_labels_are_read_back(inspected: Inspected, name: str) -> None:
    found = inspected(name)
    assert found.name == "residual"
    assert found.labels == LABELS
    assert found.preprocessing is not None
    assert found.preprocessing.mean == pytest.approx(PREPROCESSING.mean)
    assert found.preprocessing.std == pytest.approx(PREPROCESSING.std)


@pytest.mark.parametrize("name", EVERY)
def test_weights_have_a_scale_for_each_channel_and_fit_into_the_file(inspected: Inspected, name: str) -> None:
    found = inspected(name)
    assert sum(q.per_channel for q in found.quantized if q.constant and "int8" in q.dtype) >= 12  # 11 convolutions and a linear layer
    biggest = found.constants[0]
    assert sorted(biggest.shape) == [3, 3, 16, 32]
    assert (biggest.size_bytes, biggest.scales) == (16 * 32 * 9, 32)
    assert sum(c.size_bytes for c in found.constants) < found.weights_bytes < found.size_bytes
    assert [c.size_bytes for c in found.constants] == sorted((c.size_bytes for c in found.constants), reverse=True)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "torchscript"])
def test_activations_need_at_least_the_largest_layer_and_less_than_all_together(inspected: Inspected, name: str) -> None:
    peak = inspected(name).peak_activation_bytes
    assert peak is not None
    assert 2 * 16 * 28 * 28 <= peak <= 40 * 4 * 16 * 28 * 28  # two feature maps in int8; forty in float


def test_peak_memory_is_the_largest_sum_of_tensors_alive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(toolchains.program_root()))
    from converters.shared.tensor_summary import layout_of, peak_bytes

    sizes = {"x": 10, "a": 20, "b": 5, "y": 1}
    chain = [(["x", "w"], ["a"]), (["a"], ["b"]), (["b"], ["y"])]
    assert peak_bytes(chain, sizes, ["x"], ["y"]) == 30
    shortcut = [*chain[:2], (["b", "x"], ["y"])]
    assert peak_bytes(shortcut, sizes, ["x"], ["y"]) == 35
    assert [layout_of(shape) for shape in ((1, 8, 8, 3), (1, 3, 8, 8), (1, 3, 8, 3), (1, 8, 8, 8), (1, 3))] == ["NHWC", "NCHW", "", "", ""]


def test_a_file_without_metadata_is_read_too(tmp_path: Path) -> None:
    tflite, whole = inspect(Path(f"{PREBUILT}.tflite")), inspect(Path(f"{PREBUILT}.ptl"))
    torchscript = inspect(changed(Path(f"{PREBUILT}.ptl"), tmp_path / "bare.ptl", {"archive/extra/edgecompress.json": b"{}"}))
    assert tflite.inputs[0].shape == (1, 28, 28, 1)
    assert whole.inputs[0].shape == (1, 1, 28, 28)
    assert whole.ops == torchscript.ops
    assert tflite.ops["FULLY_CONNECTED"] == torchscript.ops["quantized::linear"] == 1
    assert torchscript.inputs[0].name == "x"
    assert any("keeps no shapes" in note for note in torchscript.notes)


DAMAGE = {
    "half": lambda data: data[: len(data) // 2],
    "start": lambda data: data[:20],
    "noise": lambda data: random.Random(0).randbytes(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda _: b"<html><h1>404 Not Found</h1></html>",
}


ONCE = {
    ("tflite", "half"),
    ("torchscript", "half"),
    ("tflite", "start"),
    ("torchscript", "noise"),
    ("tflite", "zeros"),
    ("torchscript", "text"),
}
DAMAGED = [
    pytest.param(name, damage, marks=() if (name, damage) in ONCE else pytest.mark.slow)
    for name in FORMATS
    for damage in DAMAGE
    if name in QUICK or damage == "half"
]


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_a_damaged_file_is_refused(made: Made, tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / f"damaged{FORMATS[name].suffix}"
    path.write_bytes(DAMAGE[damage](made(name)[0].read_bytes()))
    with pytest.raises(ConfigError, match="not a"):
        inspect(path)


@pytest.mark.parametrize("name", ["tflite", "torchscript"])
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path: Path, name: str) -> None:
    suffix = FORMATS[name].suffix
    whole, chance = Path(f"{PREBUILT}{suffix}").read_bytes(), random.Random(1)
    for k in range(2):
        data = bytearray(whole)
        for _ in range(200):
            data[chance.randrange(8, len(data))] = chance.randrange(256)
        (path := tmp_path / f"{k}{suffix}").write_bytes(data)
        with suppress(ConfigError):
            assert inspect(path).size_bytes == len(whole)


def test_a_reader_that_dies_reports_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := tmp_path / "inspect_file.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(toolchains, "inspector", lambda: program)
    with pytest.raises(ConfigError, match=r"reading it ended badly .*died by SIGSEGV.*; it is damaged or hostile"):
        inspect(Path(f"{PREBUILT}.tflite"))


WRONG: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("a.tflite", None, "no such file or directory; give the path of a model file"),
    "empty": ("a.tflite", b"", "is empty; export it again"),
    "ending": ("a.h5", b"x", r"unknown ending '\.h5'; give a model file, one of \.tflite, \.ptl"),
    "none": ("model", b"x", "unknown ending ''"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_path_that_is_no_model_file_is_refused(tmp_path: Path, name: str) -> None:
    file, content, message = WRONG[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        inspect(tmp_path / file)


def test_a_folder_is_refused_as_a_model_file(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        inspect(tmp_path / "a.tflite")


def changed(source: Path, target: Path, entries: dict[str, bytes]) -> Path:
    """Write the archive again with other contents of some entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name not in entries:
                new.writestr(name, old.read(name))
        for name, data in entries.items():
            new.writestr(name, data)
    return target


class Bomb:
    """A pickle that, read by `pickle.load`, writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "run")


def test_code_that_a_file_names_is_not_run(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    bomb = pickle.dumps(Bomb(sign))
    pickle.loads(bomb)
    assert sign.read_text() == "run"
    sign.unlink()
    path = changed(Path(f"{PREBUILT}.ptl"), tmp_path / "bomb.ptl", {"archive/bytecode.pkl": bomb})
    with pytest.raises(ConfigError, match=r"bomb\.ptl: not a readable torchscript file"):
        inspect(path)
    assert not sign.exists()


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/bytecode.pkl", bytes(100_000_000))
    (path := tmp_path / "bomb.ptl").write_bytes(data.getvalue())
    with pytest.raises(ConfigError, match=r"bytecode\.pkl has 100000000 bytes"):
        inspect(path)


def test_texts_of_a_file_cannot_control_the_terminal(tmp_path: Path, edgecompress: object) -> None:
    described = json.dumps({"name": f"{ESCAPE}[2Jnice\n\u202emodel", "labels": [f"{ESCAPE}]0;title\a"]}).encode()
    path = changed(Path(f"{PREBUILT}.ptl"), tmp_path / "drawn.ptl", {"archive/extra/edgecompress.json": described})
    found = inspect(path)
    assert found.name == "?[2Jnice ?model"
    answer = edgecompress("inspect", path)  # type: ignore[operator]
    assert answer.code == 0, answer.err
    assert not {ESCAPE, "\a", "\u202e"} & set(answer.out + answer.err)


def test_a_missing_toolchain_comes_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ai_edge_litert.py").write_text("raise ModuleNotFoundError(\"No module named 'ai_edge_litert'\", name='ai_edge_litert')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"ai_edge_litert is not installed for .*; pip install 'edgecompress\[tflite\]'"):
        inspect(Path(f"{PREBUILT}.tflite"))


def test_the_command_prints_a_record_or_tables(edgecompress: object) -> None:
    answer = edgecompress("inspect", f"{PREBUILT}.tflite", "--json")  # type: ignore[operator]
    assert from_json(answer.out.encode(), Inspection, source="stdout").ops["CONV_2D"] > 20
    answer = edgecompress("inspect", f"{PREBUILT}.tflite")  # type: ignore[operator]
    assert answer.code == 0, answer.err
    for said in ("XNNPACK: takes", "activation memory: ", "CONV_2D", "per channel", "largest constants", "1×28×28×1"):
        assert said in answer.out


def test_the_command_ends_with_2_for_a_damaged_file(edgecompress: object, tmp_path: Path) -> None:
    (path := tmp_path / "a.ptl").write_bytes(b"PK\x03\x04")
    answer = edgecompress("inspect", path)  # type: ignore[operator]
    assert answer.code == 2
    assert "a.ptl: not a readable torchscript file" in complaint(answer)
