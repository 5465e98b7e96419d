"""Write TFLite metadata, from which standard tools learn how to prepare inputs and how to name outputs.

The metadata are a flatbuffer of their own (identifier `M001`) in a buffer of the model that the entry `TFLITE_METADATA` names. The labels
are a text file in a zip archive appended to the model: a flatbuffer is read from its start, an archive from its end.

References:
    https://ai.google.dev/edge/litert/conversion/tensorflow/metadata; the slots are those of its metadata_schema.fbs.
"""

import io
import zipfile
from collections.abc import Sequence
from typing import Final

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgecompress.records import ConversionRequest, Preprocessing, TensorSpec

ENTRY: Final = b"TFLITE_METADATA"
IDENTIFIER: Final = b"M001"
MIN_PARSER: Final = "1.0.0"
LABELS_FILE: Final = "labels.txt"
LABELS_TYPE: Final = 2  # AssociatedFileType.TENSOR_AXIS_LABELS
IMAGE, NORMALIZATION = 2, 1  # members of the unions ContentProperties and ProcessUnitOptions
COLORS: Final = {1: 2, 3: 1}  # ColorSpaceType by channels: GRAYSCALE, RGB
PIXEL: Final = 255.0  # metadata normalise pixels of 0 … 255, `Preprocessing` normalises values of 0 … 1
EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # a constant date, so that the same request gives the same bytes


def add_metadata(content: bytes, request: ConversionRequest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """Return the file with metadata: the model's name, descriptions of tensors, the normalisation of images, and labels."""
    labelled = next((i for i, y in enumerate(outputs) if request.labels and y.shape[-1:] == (len(request.labels),)), None)
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    buffer = schema.BufferT()
    buffer.data = list(_build_metadata(request, inputs, outputs, labelled))
    entry = schema.MetadataT()
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    made = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return made if labelled is None else made + _make_archive(len(made), request.labels)


def _make_archive(offset: int, labels: tuple[str, ...]) -> bytes:
    """Return a zip archive with the labels, whose offsets count from the start of the file that it is appended to."""
    whole = io.BytesIO(bytes(offset))
    whole.seek(0, io.SEEK_END)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, EPOCH), "\n".join(labels).encode())
    return whole.getvalue()[offset:]


def _build_metadata(request: ConversionRequest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], labelled: int | None) -> bytes:
    b = flatbuffers.Builder(1024)
    taken = [_build_tensor(b, spec, _describe_input(spec, request), request.preprocessing, labels=False) for spec in inputs]
    given = [_build_tensor(b, spec, _describe_output(spec, i == labelled), None, labels=i == labelled) for i, spec in enumerate(outputs)]
    graph = _build_table(b, 10, {2: _build_vector(b, taken), 3: _build_vector(b, given)})
    fields = {0: b.CreateString(request.name), 3: _build_vector(b, [graph]), 7: b.CreateString(MIN_PARSER)}
    b.Finish(_build_table(b, 8, fields), IDENTIFIER)
    return bytes(b.Output())


def _describe_input(spec: TensorSpec, request: ConversionRequest) -> str:
    if spec.layout and request.preprocessing:
        return f"Image, {spec.layout}: (pixel / 255 - mean) / std, mean {request.preprocessing.mean}, std {request.preprocessing.std}."
    return f"Image, {spec.layout}." if spec.layout else f"Input of shape {spec.shape}."


def _describe_output(spec: TensorSpec, labelled: bool) -> str:
    return f"One score for each line of {LABELS_FILE}." if labelled else f"Output of shape {spec.shape}."


def _build_tensor(b: flatbuffers.Builder, spec: TensorSpec, description: str, preprocessing: Preprocessing | None, *, labels: bool) -> int:
    fields = {0: b.CreateString(spec.name), 1: b.CreateString(description)}
    if spec.layout:
        fields[3] = _build_image(b, spec)
    if spec.layout and preprocessing:
        mean = _build_floats(b, [PIXEL * m for m in preprocessing.mean])
        std = _build_floats(b, [PIXEL * s for s in preprocessing.std])
        unit = _build_union(b, NORMALIZATION, _build_table(b, 2, {0: mean, 1: std}))
        fields[4] = _build_vector(b, [unit])
    if labels:
        name, why = b.CreateString(LABELS_FILE), b.CreateString("The classes, one a line, in the order of the scores.")
        b.StartObject(5)
        b.PrependUOffsetTRelativeSlot(0, name, 0)
        b.PrependUOffsetTRelativeSlot(1, why, 0)
        b.PrependInt8Slot(2, LABELS_TYPE, 0)
        fields[6] = _build_vector(b, [b.EndObject()])
    return _build_table(b, 7, fields)


def _build_image(b: flatbuffers.Builder, spec: TensorSpec) -> int:
    """Return the table Content of an image, with its colours where the number of channels determines them."""
    _, *sizes = spec.shape
    height, width, channels = sizes if spec.layout == "NHWC" else (*sizes[1:], sizes[0])
    b.StartObject(2)
    b.PrependUint32Slot(0, width, 0)
    b.PrependUint32Slot(1, height, 0)
    size = b.EndObject()
    b.StartObject(2)
    b.PrependInt8Slot(0, COLORS.get(channels, 0), 0)
    b.PrependUOffsetTRelativeSlot(1, size, 0)
    return _build_union(b, IMAGE, b.EndObject())


def _build_union(b: flatbuffers.Builder, kind: int, value: int) -> int:
    """Return a table whose first field is a union, and whose others stay at their defaults."""
    b.StartObject(3)
    b.PrependUint8Slot(0, kind, 0)
    b.PrependUOffsetTRelativeSlot(1, value, 0)
    return int(b.EndObject())


def _build_table(b: flatbuffers.Builder, slots: int, fields: dict[int, int]) -> int:
    b.StartObject(slots)
    for slot, offset in fields.items():
        b.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(b.EndObject())


def _build_vector(b: flatbuffers.Builder, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _build_floats(b: flatbuffers.Builder, values: list[float]) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependFloat32(value)
    return int(b.EndVector())
