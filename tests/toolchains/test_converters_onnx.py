"""ONNX files compute in onnxruntime what the model computes, in every scheme, and their replies and metadata are true."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.conversions import NETS, Case, Conversions, Converted
from support.converter_session import ConverterSessions

from edgecompress.artifacts.converter_process import run_converter
from edgecompress.errors import ToolchainError
from edgecompress.records import Preprocessing

LABELS = ("a", "b")
QUICK = {
    "residual-int8-static": Case("residual", "int8-static"),
    "heads-fp32": Case("heads", "fp32"),
    "causal": Case("causal", "int8-static"),
    "mixed": Case("residual", "int8-static", {"layers": {"blocks.0": "fp32"}}),
    "told": Case("sound", "fp32", {"name": "sound", "labels": LABELS, "preprocessing": Preprocessing(mean=(0.5,), std=(0.2,))}),
}
LARGE = {
    **{f"residual-{scheme}": Case("residual", scheme) for scheme in ("fp32", "fp16", "int8-dynamic")},
    **{f"{net}-int8-static": Case(net, "int8-static") for net in ("heads", "sound", "clamped")},
    "sound-fp32": Case("sound", "fp32"),
    "mixed-fp16": Case("residual", "fp16", {"layers": {"fc": "fp32"}}),
}
CASES = QUICK | LARGE
KEYS = [*QUICK, *(pytest.param(key, marks=pytest.mark.slow) for key in LARGE)]
REFUSED = {
    "op": (Case("placed", "fp32"), "UnsupportedError: onnx: middle: ONNX has no aten.median; replace that op"),
    "scheme": (Case("sound", "int3"), "ConfigError: onnx: unknown scheme 'int3'; choose from int8-static, int8-dynamic, fp16, fp32"),
    "route": (Case("sound", "fp32", {"route": "x"}), "ConfigError: onnx: unknown route 'x'; there is only one, leave it out"),
    "io": (Case("sound", "int8-static", {"io": "int8"}), "UnsupportedError: onnx: int8 inputs and outputs: a file has no place for"),
    "bytecode": (Case("sound", "fp32", {"bytecode_version": 5}), "UnsupportedError: onnx: bytecode version: only a TorchScript file has"),
    "layer": (Case("sound", "int8-static", {"layers": {"fx": "fp32"}}), "ConfigError: onnx: no layer is called 'fx'; layers are conv, fc"),
    "two": (
        Case("sound", "int8-static", {"layers": {"fc": "fp16"}}),
        "UnsupportedError: onnx: fp16 and int8-static in one file; beside fp32 a file has one scheme, choose one",
    ),
}
# Signal to noise that a scheme leaves at least: 11 bits of fp16, 8 bits through a dozen layers. In decibels.
FLOOR_DB = {"fp16": 50.0, "int8-dynamic": 25.0, "int8-static": 25.0}
MASKED_DB = 20.0  # scores and GELUs in 8 bits, through two blocks; under a mask of −∞ it was 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, converter_sessions: ConverterSessions) -> Conversions:
    cases = CASES | {key: case for key, (case, _) in REFUSED.items()}
    return Conversions(tmp_path_factory.mktemp("onnx"), "onnx", cases, converter_sessions)


@pytest.fixture
def converted(made: Conversions, key: str) -> Converted:
    return made[key]


def weights(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray, tuple[int, ...]]]:
    """Give the name of each convolution and linear layer, its weight as it is stored, and the shape of the weight's scale."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            maker = makers.get(node.input[1])
            names = list(maker.input) if maker else [node.input[1]]
            yield node.name, constants[names[0]], constants[names[1]].shape if len(names) > 1 else ()


@pytest.mark.parametrize("key", KEYS)
def test_the_file_agrees_with_the_model(converted: Converted, key: str) -> None:
    if CASES[key].scheme == "fp32":
        assert converted.max_rel() <= 1e-4
    else:
        assert converted.sqnr_db() >= (MASKED_DB if key == "causal" else FLOOR_DB[CASES[key].scheme])


@pytest.mark.parametrize("key", KEYS)
def test_the_reply_tells_what_the_file_takes_and_holds(converted: Converted, key: str) -> None:
    file, reply = onnx.load(converted.path), converted.reply
    onnx.checker.check_model(file, full_check=True)
    assert [spec.shape for spec in reply.inputs] == [(1, *shape) for shape in NETS[CASES[key].net][1]]
    assert [spec.name for spec in (*reply.inputs, *reply.outputs)] == [value.name for value in (*file.graph.input, *file.graph.output)]
    assert all(spec.layout == ("NCHW" if len(spec.shape) == 4 else "") for spec in (*reply.inputs, *reply.outputs))
    assert {spec.dtype for spec in (*reply.inputs, *reply.outputs)} == {"float32"}
    assert sum(reply.ops.values()) == len(file.graph.node)


@pytest.mark.slow
def test_smaller_types_make_smaller_files(made: Conversions) -> None:
    sizes = [file.path.stat().st_size for file in (made["residual-int8-static"], made["residual-int8-dynamic"], made["residual-fp16"])]
    assert max(sizes) < 0.75 * made["residual-fp32"].path.stat().st_size


def test_int8_weights_have_a_scale_for_each_output_channel(made: Conversions) -> None:
    found = list(weights(onnx.load(made["residual-int8-static"].path)))
    assert len(found) == 12
    for name, weight, scale in found:
        assert weight.dtype == np.int8
        assert scale == ((10,) if name.startswith("fc/") else (weight.shape[0],))
    assert not made["residual-int8-static"].reply.notes


@pytest.mark.parametrize(
    ("key", "left", "small"), [("mixed", "blocks.0.", np.int8), pytest.param("mixed-fp16", "fc/", np.float16, marks=pytest.mark.slow)]
)
def test_only_the_requested_layers_stay_float(converted: Converted, made: Conversions, key: str, left: str, small: type) -> None:
    found = list(weights(onnx.load(converted.path)))
    assert any(name.startswith(left) for name, _, _ in found)
    assert all(weight.dtype == (np.float32 if name.startswith(left) else small) for name, weight, _ in found)
    if key == "mixed":
        assert converted.reply.notes == ("5 of 12 convolution and linear layers stayed float32",)
        assert converted.sqnr_db() > made["residual-int8-static"].sqnr_db()


def test_the_file_has_labels_and_preprocessing_but_not_the_users_source(made: Conversions) -> None:
    file = onnx.load(made["told"].path)
    assert {entry.key: entry.value for entry in file.metadata_props} == {
        "name": "sound",
        "layout": "NCHW",
        "labels": '["a","b"]',
        "preprocessing": '{"mean":[0.5],"std":[0.2],"resize":null,"crop":null}',
    }
    assert b"converter_models" not in made["told"].path.read_bytes()


@pytest.mark.parametrize("key", REFUSED)
def test_an_impossible_request_is_refused_by_name(made: Conversions, key: str) -> None:
    assert made.refusal(key).startswith(REFUSED[key][1])
    assert not (made.folder / f"{key}.file").exists()


@pytest.mark.parametrize("how", ["half", "start", "noise"])
def test_a_damaged_file_is_refused_by_its_runtime(made: Conversions, tmp_path: Path, how: str) -> None:
    assert "refused it" in made.damaged("told", how, tmp_path / "damaged.onnx")


def test_the_runner_uses_as_many_threads_as_asked(made: Conversions) -> None:
    assert made["told"].further_threads == 2


@pytest.mark.slow
def test_the_same_request_in_another_process_gives_the_same_bytes(made: Conversions) -> None:
    again = made.request(CASES["residual-int8-static"], "again.onnx")
    assert run_converter("onnx", again) == made["residual-int8-static"].reply
    assert Path(again.output).read_bytes() == made["residual-int8-static"].path.read_bytes()


def test_a_missing_package_comes_with_its_remedy(made: Conversions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxslim.py").write_text("raise ModuleNotFoundError(\"No module named 'onnxslim'\", name='onnxslim')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"onnxslim is not installed for .*; pip install 'edgecompress\[onnx\]'"):
        run_converter("onnx", made.request(CASES["sound-fp32"], "never"))
    assert not (made.folder / "never").exists()


def test_copies_of_a_shared_bias_take_no_name_of_another_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters.onnx.quantization import quantize

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    draw = np.random.default_rng(0)
    weights = {"weight": draw.normal(size=(4, 4, 3)), "bias": draw.normal(size=4)}
    nodes = [
        node
        for i in range(4)
        for node in (
            helper.make_node("Conv", [f"x{i}", "weight", "bias"], [f"y{i}"], name=f"conv{i}", pads=[1, 1]),
            helper.make_node("Sigmoid", [f"y{i}"], [f"bias{i}"], name=f"gate{i}"),
            helper.make_node("Mul", [f"y{i}", f"bias{i}"], [f"x{i + 1}"], name=f"mul{i}"),
        )
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8]) for name in ("x0", "x4")]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "shared", ends[:1], ends[1:], constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    feeds = [{"x0": draw.normal(size=(1, 4, 8)).astype(np.float32)} for _ in range(4)]
    made, _ = quantize(model, feeds, (), dynamic=False)
    onnx.checker.check_model(made, full_check=True)
    constant = {tensor.name for tensor in made.graph.initializer}
    gates = [node for node in made.graph.node if node.op_type == "DequantizeLinear" and node.output[0].startswith("bias")]
    assert len([node for node in gates if node.input[0] not in constant]) == 4
