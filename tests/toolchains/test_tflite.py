"""Options and details of TFLite files: types, layouts, mixed precision, metadata, ops outside XNNPACK, masked attention."""

import json
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file
from support.converter_models import (
    Alike,
    Attention,
    Averaged,
    Branching,
    Flattened,
    Heads,
    Meaned,
    Patches,
    Pooled,
    Residual,
    Upsampled,
    causal,
    settled,
)
from support.converter_session import ConverterSessions
from support.paths import REPOSITORY
from support.require import unavailable
from torch import Tensor, nn

from edgecompress.artifacts.converter_process import run_converter
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.exported import to_program, write_program
from edgecompress.network.parity import sqnr_db
from edgecompress.records import ConversionReply, ConversionRequest, Preprocessing, from_json, to_json


def biased() -> nn.Module:
    """Return a layer whose inputs and weights are so small that its bias in their scales takes more than 32 bits."""
    net = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        for weight in (net[0].weight, net[1].weight):
            weight.mul_(0.02)
        net[1].bias.copy_(torch.tensor([-3.0, 0.001, 2.0]))
    return net


def dead() -> nn.Module:
    """Return layers with a channel of no weights and no bias, as a factor may have."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[1], layer.bias[1] = 0, 0
    return net


OLD_PYTHON = REPOSITORY / ".venv-tflite-runtime/bin/python"
SAMPLES = 16
LABELS = tuple(f"class {i}" for i in range(5))
PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.5))
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (Residual, ((1, 28, 28),)),
    "heads": (Heads, ((3, 10, 14), (5,))),
    "meaned": (Meaned, ((3, 12, 16),)),
    "averaged": (Averaged, ((12,),)),
    "flattened": (Flattened, ((3, 12, 16),)),
    "patches": (Patches, ((3, 12, 16),)),
    "upsampled": (Upsampled, ((6, 5, 7),)),
    "pooled": (Pooled, ((3, 13, 18),)),
    "alike": (Alike, ((1, 8, 8),)),
    "branching": (Branching, ((3, 10, 10),)),
    "branching-unscaled": (partial(Branching, affine=False), ((3, 10, 10),)),
    "dead": (dead, ((3, 8, 8),)),
    "biased": (biased, ((2, 6, 6),)),
    **{f"mask-{kind}": (partial(Attention, kind), ((12, 8),)) for kind in ("added", "buffer", "filled", "causal", "boolean", "lowest")},
    "mask-blocks": (causal, ((12, 16),)),
}
MIXED = {"stem": "fp32", "blocks.0": "int8-dynamic"}
MASKS = tuple(name for name in NETS if name.startswith("mask-"))
# Case: (net, scheme, what else is asked for).
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "int8-io": ("residual", "int8-static", {"io": "int8"}),
    "int8": ("residual", "int8-static", {}),
    "int16": ("meaned", "int16x8", {}),
    "int16-biased": ("biased", "int16x8", {}),
    **{f"dead-{scheme}": ("dead", scheme, {"route": "onnx2tf"}) for scheme in ("int8-dynamic", "int8-static", "int16x8")},
    "nchw": ("heads", "fp32", {"layout": "NCHW"}),
    "nchw-int8": ("heads", "int8-static", {"layout": "NCHW"}),
    "mixed": ("residual", "int8-static", {"layers": MIXED}),
    "meaned": ("meaned", "fp32", {"name": "birds", "labels": LABELS, "preprocessing": PREPROCESSING}),
    "flattened": ("flattened", "fp32", {}),
    "patches": ("patches", "fp32", {}),
    "upsampled": ("upsampled", "fp32", {}),
    "upsampled-int8": ("upsampled", "int8-static", {}),
    "upsampled-mixed": ("upsampled", "int8-static", {"layers": {"up": "fp32"}}),
    "alike": ("alike", "int8-static", {}),
    "averaged": ("averaged", "int8-static", {}),
    "branching": ("branching", "fp32", {}),
    "branching-int8": ("branching", "int8-static", {}),
    "branching-unscaled": ("branching-unscaled", "fp32", {}),
    "pooled": ("pooled", "fp32", {}),
    "pooled-int8": ("pooled", "int8-static", {}),
    "pooled-by-onnx2tf": ("pooled", "int8-static", {"route": "onnx2tf"}),
    **{name: (name, "int8-static", {}) for name in MASKS},
    "mask-fp32": ("mask-buffer", "fp32", {}),
}

# What the quick tests leave to the slow ones: what onnx2tf converts, since TensorFlow takes long to load, and variants of other cases.
SLOW = {case for case, (_, _, asked) in CASES.items() if asked.get("route") == "onnx2tf"} | {
    "int16-biased", "flattened", "patches", "upsampled", "upsampled-mixed", "branching", "branching-unscaled", "pooled",
    "mask-buffer", "mask-filled", "mask-causal", "mask-boolean", "mask-lowest",
}  # fmt: skip


def marked(cases: Iterable[str]) -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in cases]


class Converted(NamedTuple):
    path: Path
    reply: ConversionReply
    inputs: list[tuple[Tensor, ...]]
    references: list[tuple[Tensor, ...]]

    def outputs(self) -> list[tuple[Tensor, ...]]:
        """Run the file on the inputs by what the reply says."""
        runner = Interpreter(str(self.path), num_threads=1).get_signature_runner()
        results = []
        for sample in self.inputs:
            given = runner(**{spec.name: _into(x, spec) for spec, x in zip(self.reply.inputs, sample, strict=True)})
            results.append(tuple(_out_of(given[spec.name], spec) for spec in self.reply.outputs))
        return results

    def sqnr_db(self) -> float:
        pairs = zip(zip(*self.references, strict=True), zip(*self.outputs(), strict=True), strict=True)
        return min(sqnr_db(torch.cat(found), torch.cat(reference)) for reference, found in pairs)


def _into(x: Tensor, spec: Any) -> np.ndarray:
    value = (x.permute(0, 2, 3, 1) if spec.layout == "NHWC" else x).numpy()
    if spec.scale is not None:
        value = np.clip(np.round(value / spec.scale + spec.zero_point), -128, 127).astype(spec.dtype)
    return np.ascontiguousarray(value)


def _out_of(y: np.ndarray, spec: Any) -> Tensor:
    value = torch.from_numpy(y.copy())
    if spec.scale is not None:
        value = (value.float() - spec.zero_point) * spec.scale
    return value.permute(0, 3, 1, 2) if spec.layout == "NHWC" else value


class Conversions:
    """The cases; each network is exported, and each case converted, when a test first asks."""

    def __init__(self, folder: Path, sessions: ConverterSessions) -> None:
        self.folder, self.sessions = folder, sessions
        self.evidence: dict[str, tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]] = {}
        self.done: dict[str, Converted] = {}

    def __getitem__(self, case: str) -> Converted:
        if case not in self.done:
            inputs, references = self.export(CASES[case][0])
            reply = self.sessions.convert("tflite", request(self.folder, case))
            self.done[case] = Converted(self.folder / f"{case}.tflite", reply, inputs, references)
        return self.done[case]

    def export(self, name: str) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
        """Write the program of a network and its inputs; return the inputs and the outputs."""
        if name not in self.evidence:
            build, shapes = NETS[name]
            torch.manual_seed(0)
            data = tuple(torch.randn(SAMPLES, *shape) for shape in shapes)
            model = settled(build(), data)
            save_file({f"input_{i}": x for i, x in enumerate(data)}, self.folder / f"{name}.safetensors")
            inputs = [tuple(x[k : k + 1] for x in data) for k in range(SAMPLES)]
            with torch.no_grad():
                outputs = [y if isinstance(y, tuple) else (y,) for y in (model(*sample) for sample in inputs)]
            write_program(to_program(model, inputs[0]), self.folder / f"{name}.pt2")
            self.evidence[name] = inputs, outputs
        return self.evidence[name]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, converter_sessions: ConverterSessions) -> Conversions:
    return Conversions(tmp_path_factory.mktemp("tflite"), converter_sessions)


def request(folder: Path, case: str) -> ConversionRequest:
    net, scheme, asked = CASES[case]
    data = "" if scheme == "fp32" else str(folder / f"{net}.safetensors")
    output = str(folder / f"{case}.tflite")
    return ConversionRequest(program=str(folder / f"{net}.pt2"), output=output, scheme=scheme, calibration=data, **asked)


@pytest.mark.parametrize("case", marked(CASES))
def test_the_file_agrees_with_the_model(converted: Conversions, case: str) -> None:
    net, scheme, _ = CASES[case]
    floor = {"fp32": 100.0, "int8-dynamic": 28.0, "int8-static": 28.0, "int16x8": 40.0}[scheme]
    if net in MASKS and scheme != "fp32":
        # Scores in 8 bits, once or in two blocks; under a mask of −∞ the file does not load, or is at 14 dB.
        floor = 18.0 if net == "mask-blocks" else 22.0
    assert converted[case].sqnr_db() >= floor


def test_int8_inputs_and_outputs_on_request(converted: Conversions) -> None:
    reply = converted["int8-io"].reply
    assert {(spec.dtype, spec.scale is not None) for spec in (*reply.inputs, *reply.outputs)} == {("int8", True)}
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(reply.ops)
    assert {spec.dtype for spec in (*converted["int8"].reply.inputs, *converted["int8"].reply.outputs)} == {"float32"}


@pytest.mark.parametrize("case", marked(["nchw", "nchw-int8"]))
def test_channels_first_inputs_and_outputs_on_request(converted: Conversions, case: str) -> None:
    reply = converted[case].reply
    assert [spec.shape for spec in reply.inputs] == [(1, 3, 10, 14), (1, 5)]
    assert [spec.shape for spec in reply.outputs] == [(1, 4, 5, 7), (1, 6)]
    assert [spec.layout for spec in (*reply.inputs, *reply.outputs)] == ["NCHW", "", "NCHW", ""]


@pytest.mark.parametrize("case", marked(["meaned", "flattened", "patches"]))
def test_no_feature_map_is_transposed(converted: Conversions, case: str) -> None:
    assert "TRANSPOSE" not in converted[case].reply.ops


@pytest.mark.parametrize("case", marked(["branching", "branching-int8", "branching-unscaled"]))
def test_a_batch_norm_that_no_layer_absorbs_is_one_op(converted: Conversions, case: str) -> None:
    ops = converted[case].reply.ops
    assert (ops["DEPTHWISE_CONV_2D"], ops.get("MUL", 0), ops.get("SUB", 0)) == (1, 0, 0)


@pytest.mark.parametrize("case", marked(["pooled-int8", "pooled-by-onnx2tf"]))
def test_padding_of_max_pooling_over_nonnegative_values_is_delegated(converted: Conversions, case: str) -> None:
    reply = converted[case].reply
    assert (reply.ops["MAX_POOL_2D"], reply.ops["PAD"], reply.ops["PADV2"]) == (2, 1, 1)
    assert [(entry.op, entry.count) for entry in reply.undelegated] == [("PADV2", 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.LayerNorm(8), "the runtime cannot run the file: SquaredDifference only supports FLOAT32 and INT32"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish()), "TensorFlow's converter has no hard_swish in int16x8"),
    ],
    ids=["runtime", "converter"],
)
def test_an_op_without_a_kernel_in_the_scheme_is_refused(tmp_path: Path, net: nn.Module, said: str) -> None:
    paths = {
        key: str(tmp_path / f"net.{suffix}") for key, suffix in (("program", "pt2"), ("output", "tflite"), ("calibration", "safetensors"))
    }
    data = torch.randn(4, 3, 8, 8)
    write_program(to_program(net.eval(), (data[:1],)), Path(paths["program"]))
    save_file({"input_0": data}, paths["calibration"])
    with pytest.raises(UnsupportedError, match=re.escape(said)):
        run_converter("tflite", ConversionRequest(**paths, scheme="int16x8", route="onnx2tf"))
    assert not Path(paths["output"]).exists()


@pytest.mark.parametrize("case", marked(CASES))
def test_the_ops_of_the_reply_are_those_of_the_file(converted: Conversions, case: str) -> None:
    path, reply, *_ = converted[case]
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    names = [op["op_name"] for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE"]
    assert reply.ops == {name: names.count(name) for name in names}


def test_ops_outside_xnnpack_have_a_reason(converted: Conversions) -> None:
    assert converted["int8"].reply.undelegated == ()
    left = converted["int16"].reply
    assert {u.op: u.count for u in left.undelegated} == left.ops
    assert {u.reason for u in left.undelegated} == {"XNNPACK has no kernels for int16 activations"}
    assert "many times slower" in left.notes[0]


def test_each_layer_has_its_requested_scheme(converted: Conversions) -> None:
    interpreter = Interpreter(str(converted["mixed"].path), num_threads=1)
    interpreter.allocate_tensors()
    types = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    layers = [op for op in interpreter._get_ops_details() if "CONV_2D" in op["op_name"] or op["op_name"] == "FULLY_CONNECTED"]
    computed = [(types[op["inputs"][0]].__name__, types[op["inputs"][1]].__name__) for op in layers]
    stem, block, rest = computed[:1], computed[1:6], computed[6:]  # a block has five convolutions
    assert stem == [("float32", "float32")]
    assert set(block) == {("float32", "int8")}
    assert set(rest) == {("int8", "int8")}
    assert len(rest) == 6


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"layers": {"stem.nix": "fp32"}}, ConfigError, "no layer is called 'stem.nix'; layers are blocks, "),
        ({"layers": {"stem": "int3"}}, ConfigError, "unknown scheme 'int3'"),
        ({"layers": MIXED, "route": "onnx2tf"}, UnsupportedError, "onnx2tf gives the whole file one scheme; take route litert-torch"),
        (
            {"scheme": "int16x8", "io": "int8"},
            UnsupportedError,
            "int16x8 takes and gives float32; int8 inputs and outputs are for int8-static",
        ),
    ],
)
def test_an_impossible_request_is_refused(converted: Conversions, asked: dict[str, Any], kind: type, message: str) -> None:
    folder = converted["int8"].path.parent
    wanted = {"program": str(folder / "residual.pt2"), "output": str(folder / "never"), "scheme": "int8-static"}
    calibration = str(folder / "residual.safetensors")
    with pytest.raises(kind, match=re.escape(message)):
        run_converter("tflite", ConversionRequest(**{**wanted, **asked}, calibration=calibration))
    assert not (folder / "never").exists()


def test_labels_are_an_archive_at_the_end_of_the_file(converted: Conversions) -> None:
    with zipfile.ZipFile(converted["meaned"].path) as archive:
        assert archive.testzip() is None
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)
    assert not zipfile.is_zipfile(converted["int8"].path)


def test_labels_and_metadata_are_the_same_bytes_each_time(converted: Conversions) -> None:
    path = converted["meaned"].path
    asked = request(path.parent, "meaned")
    again = path.with_name("again.tflite")
    run_converter(
        "tflite", from_json(to_json(asked).replace(asked.output.encode(), str(again).encode()), ConversionRequest, source="request")
    )
    assert again.read_bytes() == path.read_bytes()


READ_METADATA = """
import sys
from tensorflow_lite_support.metadata.python.metadata import MetadataDisplayer
shown = MetadataDisplayer.with_model_file(sys.argv[1])
print(shown.get_metadata_json())
"""


def test_standard_tools_read_the_metadata(converted: Conversions) -> None:
    found = OLD_PYTHON.exists() and list(OLD_PYTHON.parents[1].glob("lib/*/site-packages/tensorflow_lite_support"))
    if not found:
        unavailable("tflite-support is missing; run make .venv-tflite-runtime/installed")
    argv = [str(OLD_PYTHON), "-c", READ_METADATA, str(converted["meaned"].path)]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=300).stdout)
    assert told["name"] == "birds"
    (graph,) = told["subgraph_metadata"]
    (image,), (scores,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    assert image["content"]["content_properties"] == {"color_space": "RGB", "default_size": {"width": 16, "height": 12}}
    (unit,) = image["process_units"]
    assert unit["options"] == {"mean": pytest.approx([127.5, 102.0, 76.5]), "std": pytest.approx([63.75, 63.75, 127.5])}
    assert scores["associated_files"][0]["name"] == "labels.txt"
    assert scores["associated_files"][0]["type"] == "TENSOR_AXIS_LABELS"
