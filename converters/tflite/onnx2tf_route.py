"""Convert by route onnx2tf: program → ONNX → Keras model → TFLite by TensorFlow's converter."""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported: onnx2tf builds models of tf-keras

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx2tf
import onnxsim
import tensorflow as tf
import tf_keras  # noqa: F401  # says at once that it is missing; onnx2tf would fail later

from converters.onnx.export import export_program, name_nodes
from converters.tflite.file import IMAGE_AXES
from edgecompress.errors import ToolchainError, UnsupportedError, first_line
from edgecompress.faults.remedies import find_toolchain_remedy
from edgecompress.network.exported import example_inputs
from edgecompress.records import ConversionRequest
from edgecompress.targets import SCHEMES

# Activation bits → the ops that TensorFlow's converter may use.
INTEGER_OPS = {
    8: tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    16: tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
}
MISSING_OP = re.compile(r"not (?:yet )?supported for op: '(\w+)'")
# onnx2tf fetches this sample from the network unless the working directory, which is ours, holds one. It only steers its self-check.
SELF_CHECK_SAMPLE = "calibration_image_sample_data_20x128x128x3_float32.npy"


def convert(program: Any, request: ConversionRequest, samples: list[list[np.ndarray]]) -> bytes:
    """Return a TFLite file whose 4-D inputs and outputs have the layout asked for.

    Args:
        samples: The inputs of each calibration sample in that layout, for schemes that need them.
    """
    keras = make_keras_model(program)
    function = _make_function(keras, request.layout)
    owner = tf.Module()  # the model does not own the weights of convolutions in groups, and without an owner the file has no signature
    owner.model, owner.weights = keras, list(function.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], owner)
    scheme = SCHEMES[request.scheme]
    if scheme.weight_bits < 32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme.weight_bits == 16:
        converter.target_spec.supported_types = [tf.float16]
    if scheme.has_static_activations:
        converter.representative_dataset = lambda: iter(samples)
        converter.target_spec.supported_ops = [INTEGER_OPS[scheme.activation_bits]]
    if request.io == "int8":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        return bytes(converter.convert())
    except Exception as error:  # the converter's own class, ValueError and RuntimeError
        if found := MISSING_OP.search(str(error)):
            raise UnsupportedError(
                f"tflite: TensorFlow's converter has no {found[1].lower()} in {request.scheme}; replace that op or take route litert-torch"
            ) from error
        remedy = find_toolchain_remedy(error) or "take route litert-torch"
        raise ToolchainError(f"tflite: TensorFlow's converter failed: {first_line(error)}; {remedy}") from error


def make_keras_model(program: Any) -> Any:
    """Return the float model, of layers that keep their data NHWC.

    Raises:
        UnsupportedError: An op that onnx2tf lacks.
        ToolchainError: torch.onnx or onnx2tf gave up.
    """
    np.save(SELF_CHECK_SAMPLE, np.zeros((20, 128, 128, 3), np.float32))
    # onnx2tf would also make (n, c, l) into (n, l, c); this project's layouts are about images alone.
    kept = [f"input_{i}" for i, x in enumerate(example_inputs(program)) if x.ndim != IMAGE_AXES]
    path = _write_onnx(program)
    try:
        return onnx2tf.convert(
            input_onnx_file_path=str(path),
            output_folder_path="saved_model",
            keep_shape_absolutely_input_names=kept or None,
            not_use_onnxsim=True,  # three processes of it; the file is simplified
            disable_model_save=True,
            non_verbose=True,
        )
    except (Exception, SystemExit) as error:  # it ends the process when it gives up on an op
        remedy = find_toolchain_remedy(error) or "take route litert-torch"
        raise ToolchainError(f"tflite: onnx2tf failed: {first_line(error)}; {remedy}") from error


def _write_onnx(program: Any) -> Path:
    model = export_program(program, subject="tflite", instead="take route litert-torch")
    if missing := _find_missing_op(model):
        inside = name_nodes(model)[missing.name]
        layer = f"{inside[-1]}: " if inside and inside[-1] else ""
        raise UnsupportedError(f"tflite: {layer}onnx2tf has no {missing.op_type}; replace that op or take route litert-torch")
    path = Path("model.onnx")
    onnx.save(_simplify(model), path)
    return path


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model by onnxsim; itself where that fails, or joins ops to one that onnx2tf lacks, as it does with attention."""
    try:
        simplified, _ = onnxsim.simplify(model)
    except Exception:  # of C++
        return model
    return model if _find_missing_op(simplified) else simplified


def _find_missing_op(model: onnx.ModelProto) -> onnx.NodeProto | None:
    return next((node for node in model.graph.node if find_spec(f"onnx2tf.ops.{node.op_type}") is None), None)


def _make_function(keras: Any, layout: str) -> Any:
    """Return the model as a function with inputs `input_0`, … and outputs `output_0`, … in the program's order, images in `layout`."""
    order = sorted(range(len(keras.inputs)), key=lambda i: keras.input_names[i])
    turned = layout == "NCHW"

    def spec(x: Any, name: str) -> Any:
        n, *sizes = x.shape
        shape = (n, sizes[-1], *sizes[:-1]) if turned and len(x.shape) == IMAGE_AXES else x.shape
        return tf.TensorSpec(shape, x.dtype, name=name)

    def turn(x: Any, axes: list[int]) -> Any:
        return tf.transpose(x, axes) if turned and len(x.shape) == IMAGE_AXES else x

    def run(*arguments: Any) -> dict[str, Any]:
        outputs = keras([turn(arguments[order.index(i)], [0, 2, 3, 1]) for i in range(len(order))])
        given = outputs if isinstance(outputs, list | tuple) else [outputs]
        return {f"output_{k}": turn(y, [0, 3, 1, 2]) for k, y in enumerate(given)}

    specs = [spec(keras.inputs[i], f"input_{k}") for k, i in enumerate(order)]
    return tf.function(run, input_signature=specs).get_concrete_function()
