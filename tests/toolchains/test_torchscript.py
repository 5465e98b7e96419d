"""Details of TorchScript files: the grid of weights, float layers, older bytecode, the description of inputs and labels."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.converter_models import Attention, Residual, causal, settled
from torch import Tensor, nn
from torch.jit.mobile import _export_operator_list, _get_model_bytecode_version, _load_for_lite_interpreter

from edgecompress.artifacts.converter_process import run_converter as convert_apart
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.exported import example_inputs, read_program, to_program, write_program
from edgecompress.quantization.gptq import round_weights
from edgecompress.records import ConversionReply, ConversionRequest, Preprocessing
from edgecompress.toolchains import program_root

pytestmark = pytest.mark.filterwarnings("ignore")  # the converter runs in this process, and its toolchain warns at every call
SAMPLES = 64
Made = tuple[bytes, ConversionReply]
Convert = Callable[..., Made]


class Mobile(nn.Module):
    """Depthwise and pointwise convolutions with ReLU6, whose inputs are all positive: `(1, 3, 16, 16)` → `(1, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6())
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(), nn.Conv2d(16, 48, 1), nn.ReLU6(), nn.Conv2d(48, 16, 1))
                for _ in range(3)
            )
        )
        self.head = nn.Linear(16, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in")
                nn.init.normal_(layer.bias, std=0.3)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def images(n: int) -> Tensor:
    """Smooth, positive images, as photographs are."""
    return nn.functional.interpolate(torch.rand(n, 3, 4, 4), 16, mode="bilinear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs and calibration data of both networks."""
    folder = tmp_path_factory.mktemp("torchscript")
    torch.manual_seed(0)
    for name, model, x in (("mobile", Mobile(), images(SAMPLES)), ("residual", Residual(), torch.randn(SAMPLES, 1, 28, 28))):
        write_program(to_program(settled(model, (x,)), (x[:1],)), folder / f"{name}.pt2")
        save_file({"input_0": x}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def convert(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Convert]:
    """Call the converter in this process."""
    monkeypatch.syspath_prepend(str(program_root()))
    engine = torch.backends.quantized.engine
    from converters import to_torchscript

    yield lambda model, scheme, **more: to_torchscript.convert(request(folder, model, scheme, **more))
    torch.backends.quantized.engine = engine


def request(folder: Path, model: str, scheme: str, **more: object) -> ConversionRequest:
    calibrated = "int8-static" in (scheme, *more.get("layers", {}).values())  # type: ignore[attr-defined]
    calibration = str(folder / f"{model}.safetensors") if calibrated else ""
    given = {"program": str(folder / f"{model}.pt2"), "output": str(folder / "out.ptl"), "scheme": scheme, "calibration": calibration}
    return ConversionRequest(**(given | more))  # type: ignore[arg-type]


def run(content: bytes, x: Tensor) -> Tensor:
    module = _load_for_lite_interpreter(io.BytesIO(content))
    with torch.no_grad():
        return torch.cat([module(sample[None]) for sample in x])


def reference(folder: Path, model: str, x: Tensor) -> Tensor:
    module = read_program(folder / f"{model}.pt2").module()
    with torch.no_grad():
        return torch.cat([module(sample[None]) for sample in x])


def sqnr_db(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


def held_out(model: str) -> Tensor:
    torch.manual_seed(1)
    return images(128) if model == "mobile" else torch.randn(128, 1, 28, 28)


def test_the_file_has_the_weights_that_gptq_rounded(folder: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network was rounded on a grid; what FX then observes is the same grid, so that its rounding changes nothing."""
    from converters.torchscript.quantization import choose_engine, quantize, to_functional_module

    program = read_program(folder / "mobile.pt2")
    x = torch.split(images(32), 1)
    rounded = round_weights(program, [(sample,) for sample in x])
    choose_engine()
    module = to_functional_module(rounded, lambda _: False)
    quantized, _ = quantize(module, [(sample,) for sample in x], example_inputs(program), dynamic=False)
    modules = [layer for layer in quantized.modules() if hasattr(layer, "_weight_bias")]
    packed = [value for value in vars(quantized).values() if isinstance(value, torch.ScriptObject)]
    found = [layer._weight_bias()[0].dequantize() for layer in modules] + [value.unpack()[0].dequantize() for value in packed]  # type: ignore[operator, attr-defined]
    wanted = [t for t in rounded.state_dict.values() if t.ndim > 1]
    assert len(found) == len(wanted) == 11
    for weight in found:
        assert any(torch.allclose(t, weight, rtol=1e-5, atol=1e-6) for t in wanted if t.shape == weight.shape)


def test_static_int8_of_depthwise_layers_with_relu6_loses_little(folder: Path, convert: Convert) -> None:
    content, _ = convert("mobile", "int8-static")
    x = held_out("mobile")
    assert sqnr_db(reference(folder, "mobile", x), run(content, x)) > 34


def test_dynamic_int8_has_a_scale_for_each_output_channel(convert: Convert) -> None:
    from converters.torchscript.file import read_bytecode

    content, reply = convert("mobile", "int8-dynamic")
    assert reply.ops["quantized::linear_dynamic"] == 1
    (weight,) = [c for c in read_bytecode(content).constants if c.dtype == "qint8"]
    assert (weight.shape, weight.scales) == ((10, 16), 10)


def test_layers_that_dynamic_int8_leaves_float_keep_their_weights(folder: Path, convert: Convert) -> None:
    """torch has dynamic kernels for linear layers alone; convolutions on an int8 grid would lose for nothing."""
    given = read_program(folder / "mobile.pt2").state_dict
    content, _ = convert("mobile", "int8-dynamic", calibration=str(folder / "mobile.safetensors"))
    graph = torch.jit.load(io.BytesIO(content)).graph
    found = [[value.toIValue() for value in list(node.inputs())[1:3]] for node in graph.findAllNodes("aten::_convolution")]
    wanted = [[given[name], given[name.replace("weight", "bias")]] for name in given if name.endswith("weight") and given[name].ndim > 2]
    assert len(found) == len(wanted) == 10
    assert all(a.equal(b) for pair, other in zip(found, wanted, strict=True) for a, b in zip(pair, other, strict=True))


def test_gptq_rounding_helps_a_dynamic_file_too(folder: Path, convert: Convert) -> None:
    x = held_out("mobile")
    expected = reference(folder, "mobile", x)
    plain, _ = convert("mobile", "int8-dynamic")
    careful, _ = convert("mobile", "int8-dynamic", calibration=str(folder / "mobile.safetensors"))
    assert sqnr_db(expected, run(careful, x)) > sqnr_db(expected, run(plain, x)) + 1


def test_only_the_requested_layers_stay_float(folder: Path, convert: Convert) -> None:
    x = held_out("residual")
    expected = reference(folder, "residual", x)
    whole, all_int8 = convert("residual", "int8-static")
    mixed, reply = convert("residual", "int8-static", layers={"stem.0": "fp32", "blocks.1.side.0": "fp32"})
    assert reply.ops["aten::_convolution"] == 2
    convolutions = [name for name in all_int8.ops if name.startswith("quantized::conv2d")]
    assert sum(all_int8.ops[name] - reply.ops.get(name, 0) for name in convolutions) == 2
    # Sums and means between layers stay int8 and make most of this network's noise, so that two layers less are not always a gain.
    assert sqnr_db(expected, run(mixed, x)) > sqnr_db(expected, run(whole, x)) - 1


def test_the_innermost_named_module_decides_the_scheme_of_a_layer(convert: Convert) -> None:
    _, reply = convert("residual", "fp32", layers={"blocks.0.main": "int8-static", "blocks.0.main.4": "fp32"})
    assert sum(n for name, n in reply.ops.items() if name.startswith("quantized::conv2d")) == 3
    assert reply.ops["aten::_convolution"] == 11 - 3


REFUSED: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "layer": ({"layers": {"stem.7": "fp32"}}, ConfigError, r"torchscript: no layer is called 'stem\.7'; layers are blocks, blocks\.0"),
    "layer-fp16": ({"layers": {"stem.0": "fp16"}}, UnsupportedError, "fp16: the mobile CPU kernels compute in float32 or int8"),
    "io": ({"io": "int8"}, UnsupportedError, "int8 inputs and outputs: a file has no place for their scale; take float32 or format tflite"),
    "bytecode-3": ({"bytecode_version": 3}, ConfigError, "bytecode version 3 cannot be written; choose from 4, 5, 6, 7, 8"),
    "bytecode-9": ({"bytecode_version": 9}, ConfigError, "bytecode version 9 cannot be written; choose from 4, 5, 6, 7, 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_impossible_request_is_refused(convert: Convert, name: str) -> None:
    more, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        convert("residual", "fp32", **more)


@pytest.mark.parametrize("scheme", ["fp32", "int8-static"])
@pytest.mark.parametrize("version", [*(pytest.param(version, marks=pytest.mark.slow) for version in (4, 6, 7)), 5, 8, None])
def test_every_bytecode_version_computes_the_same(convert: Convert, version: int | None, scheme: str) -> None:
    newest, _ = convert("mobile", scheme)
    content, reply = convert("mobile", scheme, bytecode_version=version)
    assert reply.bytecode_version == _get_model_bytecode_version(io.BytesIO(content)) == (version or 8)
    assert any("not the same bytes each time" in note for note in reply.notes) == (reply.bytecode_version != 8)
    x = held_out("mobile")[:8]
    assert run(content, x).equal(run(newest, x))


def test_an_infinite_mask_in_a_buffer_is_kept_in_fp32(folder: Path, convert: Convert) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 12, 8)
    write_program(to_program(Attention("buffer").eval(), (x[:1],)), folder / "masked.pt2")
    content, _ = convert("masked", "fp32")
    assert sqnr_db(reference(folder, "masked", x), run(content, x)) > 100


def test_static_int8_handles_an_infinite_mask(folder: Path, convert: Convert) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 12, 16)
    write_program(to_program(causal().eval(), (x[:1],)), folder / "causal.pt2")
    save_file({"input_0": x}, folder / "causal.safetensors")
    content, _ = convert("causal", "int8-static")
    assert sqnr_db(reference(folder, "causal", x), run(content, x)) > 20  # scores in 8 bits; it was 1.5


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic", "int8-static"])
def test_the_operators_in_the_reply_are_those_that_torch_finds(convert: Convert, scheme: str) -> None:
    content, reply = convert("residual", scheme)
    assert set(reply.ops) == _export_operator_list(_load_for_lite_interpreter(io.BytesIO(content)))
    assert list(reply.ops) == sorted(reply.ops)


def test_the_file_describes_its_inputs_and_labels(convert: Convert) -> None:
    preprocessing, labels = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), crop=16), tuple("abcdefghij")
    content, reply = convert("mobile", "fp32", name="mobile", preprocessing=preprocessing, labels=labels)
    extra = {"edgecompress.json": ""}
    torch.jit.load(io.BytesIO(content), _extra_files=extra)
    described = json.loads(extra["edgecompress.json"])
    assert described["name"] == "mobile"
    assert described["labels"] == list(labels)
    assert described["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert described["inputs"][0]["shape"] == list(reply.inputs[0].shape) == [1, 3, 16, 16]


@pytest.mark.parametrize("scheme", ["fp32", pytest.param("int8-dynamic", marks=pytest.mark.slow)])
def test_the_same_request_gives_the_same_bytes(folder: Path, tmp_path: Path, scheme: str) -> None:
    """int8-static is in test_converters.py."""
    requests = [request(folder, "mobile", scheme, output=str(tmp_path / f"{k}.ptl"), labels=("a",)) for k in range(2)]
    replies = [convert_apart("torchscript", asked) for asked in requests]
    assert replies[0] == replies[1]
    assert Path(requests[0].output).read_bytes() == Path(requests[1].output).read_bytes()
