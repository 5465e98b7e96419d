"""Files of the converter programs compute what the model computes, in every route and scheme.

Most conversions share a process for each toolchain (`converter_sessions`), because importing a toolchain takes longer than converting a
small network; the others start a program by `run_converter`, as in use.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file
from support.converter_models import Clamped, Heads, Median, Placed, Residual, Sound, Spectrum, settled
from support.converter_session import ConverterSessions
from torch import Tensor, nn

from edgecompress.artifacts.converter_process import run_converter
from edgecompress.errors import ConfigError, ToolchainError, UnsupportedError
from edgecompress.network.exported import to_program, write_program
from edgecompress.network.parity import sqnr_db
from edgecompress.records import ConversionReply, ConversionRequest
from edgecompress.toolchains import converter

pytestmark = [
    pytest.mark.timeout(900),  # a test may load TensorFlow, on however busy a machine
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel and other:UserWarning"),
]
SAMPLES = 32
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (Residual, ((1, 28, 28),)),
    "heads": (Heads, ((3, 10, 14), (5,))),
    "sound": (Sound, ((3, 40),)),
    "clamped": (Clamped, ((3, 12, 12),)),
    "median": (lambda: Placed(Median()), ((3, 8, 8),)),
    "spectrum": (lambda: Placed(Spectrum()), ((3, 8, 8),)),
}
# Batch: (format, [(model, route, scheme), …]). The tests of batches "-more" are slow.
BATCHES: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "litert-torch": (
        "tflite",
        [
            *(("residual", "litert-torch", scheme) for scheme in ("fp32", "fp16", "int8-static", "int4-weights")),
            ("heads", "litert-torch", "int8-static"),
            ("clamped", "litert-torch", "int8-static"),
            ("median", "litert-torch", "fp32"),
        ],
    ),
    "litert-torch-more": (
        "tflite",
        [
            *(("residual", "litert-torch", scheme) for scheme in ("int8-dynamic", "int16x8")),
            *((model, "litert-torch", "fp32") for model in ("heads", "sound")),
            ("sound", "litert-torch", "int8-static"),
        ],
    ),
    "onnx2tf": (
        "tflite",
        [
            *(("residual", "onnx2tf", scheme) for scheme in ("fp32", "fp16", "int8-static")),
            *((model, "onnx2tf", "fp32") for model in ("median", "spectrum")),
        ],
    ),
    "onnx2tf-more": (
        "tflite",
        [
            *(("residual", "onnx2tf", scheme) for scheme in ("int8-dynamic", "int16x8")),
            *((model, "onnx2tf", "fp32") for model in ("heads", "sound")),
        ],
    ),
    "torchscript": (
        "torchscript",
        [
            *(("residual", "", scheme) for scheme in ("fp32", "int8-dynamic", "int8-static")),
            *((model, "", scheme) for model in ("heads", "sound") for scheme in ("fp32", "int8-static")),
            ("clamped", "", "int8-static"),
        ],
    ),
}
CASES = [
    pytest.param(batch, *case, marks=pytest.mark.slow if batch.endswith("-more") else ())
    for batch, (_, cases) in BATCHES.items()
    for case in cases
    if case[0] not in ("median", "spectrum")
]
CALIBRATED = ("int8-static", "int16x8", "int4-weights")
# Signal to noise that a scheme leaves at least: 11 bits of fp16, 8 or 4 bits through a dozen layers. In decibels.
FLOOR_DB = {"fp16": 50.0, "int8-dynamic": 25.0, "int8-static": 20.0, "int16x8": 40.0, "int4-weights": 20.0}


class Bench:
    """Programs, calibration data, references and conversions of the session, each made once."""

    def __init__(self, folder: Path, sessions: ConverterSessions) -> None:
        self.folder, self.sessions = folder, sessions
        self.replies: dict[str, ConversionReply] = {}
        self.references: dict[str, tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]] = {}
        for name, (build, shapes) in MODELS.items():
            torch.manual_seed(0)
            data = tuple(torch.randn(SAMPLES, *shape) for shape in shapes)
            model = settled(build(), data)
            save_file({f"input_{i}": x for i, x in enumerate(data)}, folder / f"{name}.safetensors")
            inputs = [tuple(x[k : k + 1] for x in data) for k in range(SAMPLES)]
            with torch.no_grad():
                outputs = [y if isinstance(y, tuple) else (y,) for y in (model(*sample) for sample in inputs)]
            self.references[name] = inputs, outputs
            write_program(to_program(model, inputs[0]), folder / f"{name}.pt2")

    def request(self, model: str, route: str, scheme: str, *, name: str = "") -> ConversionRequest:
        return ConversionRequest(
            program=str(self.folder / f"{model}.pt2"),
            output=str(self.folder / (name or f"{model}-{route}-{scheme}")),
            scheme=scheme,
            route=route,
            calibration=str(self.folder / f"{model}.safetensors") if scheme in CALIBRATED else "",
        )

    def result(self, batch: str, model: str, route: str, scheme: str) -> tuple[Path, ConversionReply]:
        """Return a converted file and its reply; the case is converted when a test first asks for it."""
        request = self.request(model, route, scheme)
        if request.output not in self.replies:
            self.replies[request.output] = self.sessions.convert(BATCHES[batch][0], request)
        return Path(request.output), self.replies[request.output]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, converter_sessions: ConverterSessions) -> Bench:
    return Bench(tmp_path_factory.mktemp("converters"), converter_sessions)


def run(path: Path, reply: ConversionReply, samples: list[tuple[Tensor, ...]], *, form: str) -> list[tuple[Tensor, ...]]:
    """Run the file on samples by what its reply says about names, order and layout alone."""
    results = []
    if form == "tflite":
        runner = Interpreter(str(path), num_threads=1).get_signature_runner()
        for sample in samples:
            fed = {
                spec.name: (x.permute(0, 2, 3, 1) if spec.layout == "NHWC" else x).numpy()
                for spec, x in zip(reply.inputs, sample, strict=True)
            }
            given = runner(**fed)
            outputs = [(torch.from_numpy(given[spec.name].copy()), spec.layout) for spec in reply.outputs]
            results.append(tuple(y.permute(0, 3, 1, 2) if layout == "NHWC" else y for y, layout in outputs))
        return results
    from torch.jit.mobile import _load_for_lite_interpreter

    torch.backends.quantized.engine = reply.toolchain.get("quantized_engine", torch.backends.quantized.engine)
    module = _load_for_lite_interpreter(str(path))
    with torch.no_grad():
        outputs = [module(*sample) for sample in samples]
    return [(y,) if isinstance(y, Tensor) else tuple(y) for y in outputs]


@pytest.mark.parametrize(("batch", "model", "route", "scheme"), CASES)
def test_the_file_agrees_with_the_model(bench: Bench, batch: str, model: str, route: str, scheme: str) -> None:
    path, reply = bench.result(batch, model, route, scheme)
    inputs, references = bench.references[model]
    found = run(path, reply, inputs, form=BATCHES[batch][0])
    for k in range(len(references[0])):
        reference = torch.cat([outputs[k] for outputs in references])
        output = torch.cat([outputs[k] for outputs in found])
        assert output.shape == reference.shape
        if scheme == "fp32":
            assert (output - reference).abs().max() <= 1e-4 * (reference.max() - reference.min())
        else:
            assert sqnr_db(output, reference) >= FLOOR_DB[scheme]


@pytest.mark.parametrize(("batch", "model", "route", "scheme"), CASES)
def test_the_reply_tells_what_the_file_takes(bench: Bench, batch: str, model: str, route: str, scheme: str) -> None:
    _, reply = bench.result(batch, model, route, scheme)
    nhwc = BATCHES[batch][0] == "tflite"
    shapes = [(1, *shape) for shape in MODELS[model][1]]
    if nhwc:
        shapes = [(s[0], s[2], s[3], s[1]) if len(s) == 4 else s for s in shapes]
    assert [spec.shape for spec in reply.inputs] == shapes
    assert {spec.layout for spec in (*reply.inputs, *reply.outputs) if len(spec.shape) == 4} <= {"NHWC" if nhwc else "NCHW"}
    assert {spec.dtype for spec in (*reply.inputs, *reply.outputs)} == {"float32"}
    assert reply.toolchain["torch"] == torch.__version__
    if batch == "torchscript":
        assert ("quantized_engine" in reply.toolchain) == (scheme != "fp32")
        assert torch._C._is_xnnpack_enabled() or any("built without XNNPACK" in note for note in reply.notes)


@pytest.mark.parametrize("route", ["litert-torch", "onnx2tf"])
def test_int8_shrinks_the_file(bench: Bench, route: str) -> None:
    sizes = {scheme: bench.result(route, "residual", route, scheme)[0].stat().st_size for scheme in ("fp32", "fp16", "int8-static")}
    assert sizes["int8-static"] < sizes["fp16"] < 0.75 * sizes["fp32"]


@pytest.mark.parametrize("scheme", ["fp32", "int8-static"])
@pytest.mark.parametrize("route", ["litert-torch", "onnx2tf"])
def test_xnnpack_takes_the_whole_network(bench: Bench, route: str, scheme: str) -> None:
    path, _ = bench.result(route, "residual", route, scheme)
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    delegates = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    assert len(delegates) == 1
    assert {int(i) for i in delegates[0]["outputs"]} == {detail["index"] for detail in interpreter.get_output_details()}
    made_here = {int(i) for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE" for i in op["outputs"]}
    assert not made_here & {int(i) for i in delegates[0]["inputs"]}


def test_static_int8_has_a_scale_for_each_output_channel(bench: Bench) -> None:
    path, _ = bench.result("litert-torch", "residual", "litert-torch", "int8-static")
    interpreter = Interpreter(str(path), num_threads=1)
    weights = [d for d in interpreter.get_tensor_details() if d["dtype"] is np.int8 and len(d["shape"]) == 4 and d["shape"][0] > 1]
    assert weights
    assert all(len(d["quantization_parameters"]["scales"]) in {d["shape"][0], d["shape"][3]} for d in weights)


def test_the_same_request_in_another_process_gives_the_same_bytes(bench: Bench) -> None:
    path, reply = bench.result("litert-torch", "residual", "litert-torch", "int8-static")
    again = bench.request("residual", "litert-torch", "int8-static", name="again.tflite")
    assert run_converter("tflite", again) == reply
    assert Path(again.output).read_bytes() == path.read_bytes()


def test_the_same_request_gives_the_same_torchscript(bench: Bench) -> None:
    """Both in a process of their own: torch.jit numbers its classes by what a process has traced before."""
    requests = [bench.request("residual", "", "int8-static", name=f"again-{k}.ptl") for k in range(2)]
    replies = [run_converter("torchscript", request) for request in requests]
    assert replies[0] == replies[1]
    assert len({Path(request.output).read_bytes() for request in requests}) == 1


@pytest.mark.parametrize(
    ("model", "route", "message"),
    [
        ("median", "litert-torch", "tflite: middle: litert-torch has no aten.median; replace that op or take route onnx2tf"),
        pytest.param(
            *("median", "onnx2tf", "tflite: middle: ONNX has no aten.median; replace that op or take route litert-torch"),
            marks=pytest.mark.slow,
        ),
        (
            "spectrum",
            "onnx2tf",
            "tflite: middle: aten.fft_rfft makes complex numbers, which the format lacks; "
            "compute it by convolutions with fixed kernels, or take format onnx",
        ),
    ],
)
def test_a_missing_op_is_named_with_its_layer(bench: Bench, model: str, route: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^{re.escape(message)}$"):
        bench.result(route, model, route, "fp32")
    assert not Path(bench.request(model, route, "fp32").output).exists()


def test_dynamic_int8_without_a_linear_layer_is_refused(bench: Bench) -> None:
    write_program(to_program(nn.Conv2d(3, 4, 3), (torch.randn(1, 3, 8, 8),)), bench.folder / "conv.pt2")
    with pytest.raises(UnsupportedError, match="int8-dynamic quantizes linear layers alone and there is none; choose int8-static"):
        run_converter("torchscript", bench.request("conv", "", "int8-dynamic"))


@pytest.mark.parametrize(
    ("form", "route", "scheme", "kind", "message"),
    [
        (
            "tflite",
            "",
            "int3",
            ConfigError,
            "unknown scheme 'int3'; choose from int8-static, int8-dynamic, int16x8, int4-weights, fp16, fp32",
        ),
        ("tflite", "onnx2tf", "int4-weights", UnsupportedError, "TensorFlow's converter has no 4-bit weights; take route litert-torch"),
        ("tflite", "toco", "fp32", ConfigError, "unknown route 'toco'; choose from litert-torch, onnx2tf"),
        ("torchscript", "", "int3", ConfigError, "unknown scheme 'int3'; choose from int8-static, int8-dynamic, fp32"),
        ("torchscript", "onnx2tf", "fp32", ConfigError, "unknown route 'onnx2tf'"),
        ("torchscript", "", "fp16", UnsupportedError, "fp16: the mobile CPU kernels compute in float32 or int8"),
    ],
)
def test_an_impossible_request_is_refused(bench: Bench, form: str, route: str, scheme: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        run_converter(form, bench.request("residual", route, scheme))


def test_a_missing_package_comes_with_its_remedy(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "litert_torch.py").write_text("raise ModuleNotFoundError(\"No module named 'litert_torch'\", name='litert_torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"litert_torch is not installed for .*; pip install 'edgecompress\[tflite\]'"):
        run_converter("tflite", bench.request("residual", "", "fp32", name="never"))
    assert not (bench.folder / "never").exists()


BAD_CALIBRATION: dict[str, tuple[dict[str, Tensor] | bytes | None, str]] = {
    "none": (None, "int8-static: needs calibration data; give some real inputs"),
    "damaged": (b"\xff" * 40, "unreadable calibration data .*; run the quantize step again"),
    "other-name": ({"x": torch.zeros(2, 1, 28, 28)}, "input_0 has no samples"),
    "empty": ({"input_0": torch.zeros(0, 1, 28, 28)}, "input_0 has no samples"),
    "shape": ({"input_0": torch.zeros(2, 28, 28, 1)}, r"samples of shape \(28, 28, 1\), the model takes \(1, 28, 28\)"),
    "nan": ({"input_0": torch.full((2, 1, 28, 28), torch.nan)}, "input_0 holds NaN or inf in 2 samples, first 0; leave those samples out"),
}


@pytest.mark.parametrize("name", BAD_CALIBRATION)
def test_bad_calibration_is_refused(bench: Bench, tmp_path: Path, name: str) -> None:
    from edgecompress.network.exported import read_program
    from edgecompress.quantization.calibration import read_calibration

    content, message = BAD_CALIBRATION[name]
    path = tmp_path / "calibration.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_calibration("" if content is None else str(path), read_program(bench.folder / "residual.pt2"))


def test_a_missing_program_file_is_reported(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.pt2: not a readable exported program"):
        run_converter("torchscript", bench.request("nowhere", "", "fp32"))


def test_the_readme_lists_every_program() -> None:
    folder = converter("tflite").parent
    text = (folder / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in folder.glob("to_*.py"))
