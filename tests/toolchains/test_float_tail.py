"""Files keep the range of every channel where an output joins ranges that int8 cannot hold together, in each format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.converter_session import ConverterSessions
from support.detectors import MIXED, channel_sqnr_db, detector_and_data

from edgecompress.errors import UnsupportedError
from edgecompress.network.exported import to_program, write_program
from edgecompress.quantization.float_tail import keep_tail_float
from edgecompress.records import ConversionReply, ConversionRequest, QuantSpec

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
]
QUICK = {("tflite", "cat"), ("onnx", "cat")}
CASES = [
    pytest.param(form, join, marks=() if (form, join) in QUICK else pytest.mark.slow)
    for form in ("tflite", "onnx", "executorch", "torchscript")
    for join in MIXED
]


def write_request(folder: Path, join: str, suffix: str, **asked: str) -> tuple[ConversionRequest, torch.nn.Module, torch.Tensor]:
    model, x = detector_and_data(join)
    program, quant, _ = keep_tail_float(to_program(model, (x[:1],)), QuantSpec(scheme="int8-static"), (x,))
    write_program(program, folder / "program.pt2")
    save_file({"input_0": x}, folder / "inputs.safetensors")
    paths = {key: str(folder / name) for key, name in (("program", "program.pt2"), ("calibration", "inputs.safetensors"))}
    return ConversionRequest(**paths, output=str(folder / suffix), scheme="int8-static", layers=quant.layers, **asked), model, x


def convert(sessions: ConverterSessions, form: str, folder: Path, join: str) -> tuple[ConversionReply, list[float]]:
    """Return the reply, and the SQNR of each channel of the file's outputs."""
    request, model, x = write_request(folder, join, "file")
    reply = sessions.convert(form, request, folder / "inputs.safetensors")
    with np.load(folder / "file.npz") as found:
        outputs = tuple(torch.from_numpy(found[name]) for name in found)
    outputs = tuple(y.permute(0, 3, 1, 2) if spec.layout == "NHWC" else y for y, spec in zip(outputs, reply.outputs, strict=True))
    with torch.no_grad():
        given = model(x)
    return reply, channel_sqnr_db(outputs, given if isinstance(given, tuple) else (given,), join)


@pytest.mark.parametrize(("form", "join"), CASES)
def test_every_channel_of_the_file_keeps_its_values(converter_sessions: ConverterSessions, tmp_path: Path, form: str, join: str) -> None:
    reply, channels = convert(converter_sessions, form, tmp_path, join)
    assert min(channels) > 20
    assert _integer_layers(form, reply) >= 2  # the body


def _integer_layers(form: str, reply: ConversionReply) -> int:
    if form == "tflite":  # float layers would stand in a note
        stayed = next((note for note in reply.notes if "stayed float32" in note), "")
        return reply.ops["CONV_2D"] - (1 if "CONV_2D" in stayed else 0)
    if form == "executorch":
        return reply.ops["quantized_decomposed.dequantize_per_channel.default"]
    return reply.ops["Conv"] if form == "onnx" else sum(n for op, n in reply.ops.items() if op.startswith("quantized::conv2d"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"io": "int8"}, "take float32 inputs and outputs"), ({"route": "onnx2tf"}, "take route litert-torch")],
    ids=["int8-outputs", "onnx2tf"],
)
def test_what_cannot_keep_the_ranges_is_refused(tmp_path: Path, asked: dict[str, str], said: str) -> None:
    request, _, _ = write_request(tmp_path, "cat", "file.tflite", **asked)
    from converters import to_tflite

    with pytest.raises(UnsupportedError, match=said):
        to_tflite.convert(request)
