"""Run a TFLite or ONNX file by its own runtime, and compute fidelity and metrics with numpy alone: nothing here is edgecompress's.

What is told in a manifest is compared with these numbers. The definitions are edgecompress's: a wrong computation shows, a definition that
is ill chosen does not. That a spread counts at least a tenth of the root mean square stands in `network/output_kinds.py` alone, and the
axis of channels is the one that the manifest tells.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

Array = np.ndarray[Any, Any]

PITCH_BIN_CENTS = 50.0
POSE_SPREAD = np.array((20.0, 2.5, 2.5, 0.15))


def run_file(path: Path, inputs: Array, reference: dict[str, Array]) -> list[Array]:
    """Return the outputs of a file, one inference a sample, with the axes of the network's own outputs.

    Args:
        inputs: `(n, …)` as the network takes them; images are turned to the file's layout.
        reference: Outputs of the network, which tell the layout of the file's, by name; a file calls them so, or output_0, output_1, ….
    """
    return (run_onnx if {".onnx"} & {*path.suffixes} else run_tflite)(path, inputs, reference)


def run_onnx(path: Path, inputs: Array, _: dict[str, Array]) -> list[Array]:
    try:
        session = open_session(path, precise="1")
    except Fail:  # it refuses some files of its own quantizer in this mode
        session = open_session(path, precise="0")
    (taken,) = session.get_inputs()
    found = [session.run(None, {taken.name: sample[None]}) for sample in inputs]  # the outputs are in the network's order
    return [np.concatenate(column).astype(np.float32) for column in zip(*found, strict=True)]


def open_session(path: Path, *, precise: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file; sums of int8 products that are not `precise` overflow on x86 without VNNI."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", precise)
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def run_tflite(path: Path, inputs: Array, reference: dict[str, Array]) -> list[Array]:
    interpreter = Interpreter(str(path), num_threads=1)
    run = interpreter.get_signature_runner()
    ((name, details),) = run.get_input_details().items()
    if inputs.ndim == 4 and tuple(details["shape"][1:]) != inputs.shape[1:]:
        inputs = inputs.transpose(0, 2, 3, 1)
    found = [run(**{name: to_integers(sample[None], details)}) for sample in inputs]
    ends = run.get_output_details()
    outputs = []
    for i, (own_name, wanted) in enumerate(reference.items()):
        key = own_name if own_name in ends else f"output_{i}"
        y = to_numbers(np.concatenate([each[key] for each in found]), ends[key])
        outputs.append(y.transpose(0, 3, 1, 2) if y.ndim == 4 and y.shape != wanted.shape else y)
    return outputs


def to_integers(x: Array, details: dict[str, Any]) -> Array:
    """Return `x` in the type of a file's input: rounded to its grid where that is int8."""
    scale, zero = details["quantization"]
    if not scale:
        return x.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def to_numbers(y: Array, details: dict[str, Any]) -> Array:
    scale, zero = details["quantization"]
    return (y.astype(np.float32) - zero) * np.float32(scale) if scale else y


# --- how much of an output is kept ---


def keep_classes(output: Array, reference: Array, _: Mapping[str, Any]) -> float:
    """Return the fraction of the positions with the same largest class; classes are along axis 1."""
    return float(np.mean(np.argmax(output, 1) == np.argmax(reference, 1)))


def keep_embedding(output: Array, reference: Array, _: Mapping[str, Any]) -> float:
    """Return the smaller of the nearest neighbours kept and 1 − 5·(1 − mean cosine)."""
    a, b = (y.astype(np.float64) / np.linalg.norm(y.astype(np.float64), axis=1, keepdims=True) for y in (output, reference))
    near = [(y @ y.T - 10 * np.eye(len(y))).argmax(1) for y in (a, b)]
    return float(min(np.mean(near[0] == near[1]), 1 - 5 * (1 - np.mean(np.sum(a * b, 1)))))


def keep_independent(output: Array, reference: Array, _: Mapping[str, Any]) -> float:
    """Return 1 − the root mean square difference of the probabilities that are above 0.05 in either."""
    counted = np.maximum(output, reference) > 0.05
    return float(1 - np.sqrt(np.mean((output.astype(np.float64) - reference)[counted] ** 2)))


def keep_values(output: Array, reference: Array, told: Mapping[str, Any]) -> float:
    """Return 1 − error over spread of the worst channel along the axis that is told; one channel where none is told."""
    axis = told["channel_axis"]
    a, b = (np.moveaxis(y, axis, 0).reshape(y.shape[axis], -1) if axis is not None else y.reshape(1, -1) for y in (output, reference))
    a, b = a.astype(np.float64), b.astype(np.float64)
    spread = np.maximum(b.std(1), 0.1 * np.sqrt(np.mean(b**2, 1)))
    return float(max(0.0, 1 - np.max(np.sqrt(np.mean((a - b) ** 2, 1)) / spread)))


KEEP = {
    "class_map": keep_classes,
    "logits": keep_classes,
    "embedding": keep_embedding,
    "independent": keep_independent,
    "values": keep_values,
}


# --- the metrics of the tasks ---


def retrieval(outputs: list[Array], topics: Array) -> float:
    directions = outputs[0] / np.linalg.norm(outputs[0], axis=1, keepdims=True)
    return float(np.mean(topics[(directions @ directions.T - 10 * np.eye(len(topics))).argmax(1)] == topics))


def miou(outputs: list[Array], masks: Array) -> float:
    found, classes = np.argmax(outputs[0], 1), outputs[0].shape[1]
    table = np.bincount((masks * classes + found).ravel(), minlength=classes**2).reshape(classes, classes)
    return float(np.mean(np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))))


def f1(outputs: list[Array], targets: Mapping[str, Array]) -> float:
    each = []
    for boxes, scores, real, shapes in zip(*outputs, targets["boxes"], targets["shapes"], strict=True):
        found = [(box, int(np.argmax(score))) for box, score in zip(boxes, scores, strict=True) if np.max(score) > 0.5]
        wanted = [(box, int(shape)) for box, shape in zip(real, shapes, strict=True) if shape >= 0]
        hits = sum(any(shape == c and overlap(box, b) > 0.5 for b, c in found) for box, shape in wanted)
        each.append(2 * hits / (len(found) + len(wanted)))
    return float(np.mean(each))


def overlap(a: Array, b: Array) -> float:
    """Return intersection over union of two boxes, each centre and size."""
    sides = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2) - np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (float(np.prod(a[2:]) + np.prod(b[2:])) - common)


def pitch(outputs: list[Array], cents: Array) -> float:
    return float(np.mean(np.abs((np.argmax(outputs[0], 1) + 0.5) * PITCH_BIN_CENTS - cents) <= 50))


def r2(outputs: list[Array], poses: Array) -> float:
    return float(1 - np.mean(((outputs[0] - poses) / POSE_SPREAD) ** 2))


METRICS = {"embedder": retrieval, "unet": miou, "detector": f1, "pitch": pitch, "pose": r2}
