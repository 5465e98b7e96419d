"""The runtimes of the runner: `BACKENDS` maps a format to a class.

A class takes (path, threads, input_shapes, input_dtypes), of which the last two may be empty, and has `.inputs` [(shape, low, high)],
`.prepare(arrays)`, `.invoke()`, `.run(arrays)`, `.profile(runs)` -> [{name, calls, ms}] or [], `.backend` (name and version) and `.notes`.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import defaultdict

from runner_machine import int8_sums_overflow


class RunnerError(Exception):
    """A failure with one of the kinds request, hash, runtime, artifact or inputs."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class TFLiteModel:
    """A TFLite file in `Interpreter` with its default XNNPACK delegate.

    `CompiledModel` is avoided: in ai-edge-litert 2.3 it needs LSE atomics and dies with SIGILL on Cortex-A53 and A72 (Raspberry Pi 3, 4).
    """

    def __init__(self, path, threads, input_shapes, input_dtypes):
        module, self.backend = import_tflite_runtime()
        self.notes = []
        try:
            self.interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise RunnerError("artifact", f"{path.name}: {self.backend} refused it: {error}") from error
        self.input_details = order_details(self.interpreter, "inputs")
        self.output_details = order_details(self.interpreter, "outputs")
        self.inputs = [(tuple(int(size) for size in detail["shape"]), *quantized_value_range(detail)) for detail in self.input_details]

    def run(self, arrays):
        """Return the outputs as float32 arrays for float32 `arrays` in the artifact's own shapes."""
        self.prepare(arrays)
        self.interpreter.invoke()
        return [dequantize_array(self.interpreter.get_tensor(detail["index"]), detail) for detail in self.output_details]

    def invoke(self):
        self.interpreter.invoke()

    def profile(self, runs):
        self.notes.append(f"no times per op: the Python interpreter of {self.backend} does not tell them; a runner of your own may")
        return []

    def prepare(self, arrays):
        """Set the inputs before the timed inferences, so that only the inference itself is timed."""
        for detail, array in zip(self.input_details, arrays):
            self.interpreter.set_tensor(detail["index"], quantize_array(array, detail))


class TorchScriptModel:
    """A `.ptl` file in torch's lite interpreter. The file does not hold its input shapes, so the request must."""

    def __init__(self, path, threads, input_shapes, input_dtypes):
        torch = import_torch()
        self.torch = torch
        self.backend = f"torch {torch.__version__}"
        self.notes = []
        torch.set_num_threads(threads)
        self._choose_engine()
        from torch.jit.mobile import _load_for_lite_interpreter

        if not input_shapes:
            raise RunnerError("request", f"{path.name}: a torchscript file does not tell its input shapes; give input_shapes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self.module = _load_for_lite_interpreter(str(path))
        except RuntimeError as error:
            raise RunnerError("artifact", f"{path.name}: {self.backend} refused it: {first_line(error)}") from error
        self.dtypes = input_dtypes or ["float32"] * len(input_shapes)
        self.inputs = [(tuple(shape), *value_range(dtype)) for shape, dtype in zip(input_shapes, self.dtypes)]

    def _choose_engine(self):
        """Set the engine of quantized ops before the file is loaded, which packs its weights. Files for ARM are made for qnnpack."""
        engines = [name for name in self.torch.backends.quantized.supported_engines if name != "none"]
        engine = next((name for name in ("qnnpack", "x86", "onednn", "fbgemm") if name in engines), None)
        if engine is None:
            self.notes.append("this torch has no quantized engine; int8 files will not load")
            return
        self.torch.backends.quantized.engine = engine
        if engine != "qnnpack":
            self.notes.append(f"quantized engine {engine}, qnnpack is not in this torch")

    def run(self, arrays):
        self.prepare(arrays)
        with self.torch.inference_mode():
            outputs = self.module(*self.tensors)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return [(output.dequantize() if output.is_quantized else output).float().numpy() for output in outputs]

    def invoke(self):
        with self.torch.inference_mode():
            self.module(*self.tensors)

    def prepare(self, arrays):
        self.tensors = [self.torch.from_numpy(array.astype(dtype, copy=False)) for array, dtype in zip(arrays, self.dtypes)]

    def profile(self, runs):
        with self.torch.profiler.profile(activities=[self.torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(runs):
                self.invoke()
        events = [event for event in profiler.key_averages() if event.self_cpu_time_total > 0]
        return sort_op_times({event.key: (event.count, event.self_cpu_time_total / 1e3) for event in events}, runs)


class OnnxModel:
    """An ONNX file in onnxruntime on the CPU. Free dimensions are 1 unless the request tells the shapes.

    On x86 without VNNI onnxruntime adds int8 products in int16, which may overflow; PRECISE makes it compute them exactly.
    """

    PRECISE = "session.x64quantprecision"

    def __init__(self, path, threads, input_shapes, input_dtypes):
        try:
            import onnxruntime
        except ImportError as error:
            raise RunnerError("runtime", f"onnxruntime does not import in {sys.executable}; pip install onnxruntime") from error
        self.onnxruntime, self.path, self.threads = onnxruntime, path, threads
        self.backend = f"onnxruntime {onnxruntime.__version__}"
        self.notes = []
        self.session = self._open_session(profile=False)
        told = self.session.get_inputs()
        shapes = input_shapes or [[size if isinstance(size, int) else 1 for size in node.shape] for node in told]
        if len(shapes) != len(told):
            raise RunnerError("request", f"{path.name}: {len(shapes)} input shapes given, the artifact takes {len(told)} inputs")
        self.inputs = [(tuple(shape), *value_range(DTYPES.get(node.type, "float32"))) for shape, node in zip(shapes, told)]
        self.dtypes = [DTYPES.get(node.type, "float32") for node in told]

    def _open_session(self, profile):
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        options.enable_profiling = profile
        options.profile_file_prefix = str(self.path.with_suffix(".profile"))
        refusals = []
        for precise in ("1", "0"):
            options.add_session_config_entry(self.PRECISE, precise)
            try:
                session = self.onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # its errors have no common class
                refusals.append(error)
                continue
            if refusals and not profile and int8_sums_overflow(self.onnxruntime):
                self.notes.append(
                    "onnxruntime adds int8 products in 16 bits here, and refused to run this file precisely: int8 sums may overflow"
                )
            return session
        raise RunnerError("artifact", f"{self.path.name}: {self.backend} refused it: {first_line(refusals[-1])}") from refusals[-1]

    def run(self, arrays):
        self.prepare(arrays)
        return [output.astype("float32") for output in self.session.run(None, self.feeds)]

    def invoke(self):
        self.session.run(None, self.feeds)

    def prepare(self, arrays):
        named = zip(self.session.get_inputs(), self.dtypes, arrays)
        self.feeds = {node.name: array.astype(dtype) for node, dtype, array in named}

    def profile(self, runs):
        session = self._open_session(profile=True)
        for _ in range(runs):
            session.run(None, self.feeds)
        with open(session.end_profiling(), encoding="utf-8") as file:  # noqa: PTH123 - its name is a string
            events = json.load(file)
        spent = defaultdict(lambda: (0, 0.0))
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = f"{event['args'].get('op_name', '?')} {event['name'][: -len('_kernel_time')]}"
                calls, ms = spent[name]
                spent[name] = calls + 1, ms + event["dur"] / 1e3
        return sort_op_times(spent, runs)


class ExecuTorchModel:
    """The method forward of a `.pte` file in executorch's Python runtime. All files share the threads of the process."""

    def __init__(self, path, threads, input_shapes, input_dtypes):
        try:
            import torch
            from executorch.runtime import Runtime
        except ImportError as error:
            raise RunnerError("runtime", f"executorch does not import in {sys.executable}; pip install executorch") from error
        self.torch = torch
        self.backend = version_of("executorch")
        self.notes = []
        try:
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        except ImportError:
            self.notes.append("executorch chooses its number of threads itself")
        else:
            _unsafe_reset_threadpool(threads)
        try:
            self.program = Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
            metadata = self.method.metadata
            told = [metadata.input_tensor_meta(i) for i in range(metadata.num_inputs())]
        except Exception as error:  # its errors have no common class
            raise RunnerError("artifact", f"{path.name}: {self.backend} refused it: {first_line(error)}") from error
        self.dtypes = input_dtypes or [SCALAR_TYPES.get(tensor.dtype(), "float32") for tensor in told]
        shapes = input_shapes or [tensor.sizes() for tensor in told]
        if len(shapes) != len(told):
            raise RunnerError("request", f"{path.name}: {len(shapes)} input shapes given, the artifact takes {len(told)} inputs")
        self.inputs = [(tuple(shape), *value_range(dtype)) for shape, dtype in zip(shapes, self.dtypes)]

    def run(self, arrays):
        self.prepare(arrays)
        return [output.float().numpy() for output in self.method.execute(self.tensors)]

    def invoke(self):
        self.method.execute(self.tensors)

    def prepare(self, arrays):
        self.tensors = [self.torch.from_numpy(array.astype(dtype, copy=False)) for array, dtype in zip(arrays, self.dtypes)]

    def profile(self, runs):
        self.notes.append("no times per op: executorch's Python runtime tells them only in builds with its event tracer")
        return []


BACKENDS = {"tflite": TFLiteModel, "torchscript": TorchScriptModel, "onnx": OnnxModel, "executorch": ExecuTorchModel}
BITS_PER_BYTE = 8
SCALAR_TYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 7: "float64", 11: "bool"}  # torch numbers its dtypes so
DTYPES = {
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def sort_op_times(spent, runs):
    """Return the [{name, calls, ms}] of one inference, slowest first, at most 200, from the {name: (calls, ms)} of `runs` inferences."""
    found = [{"name": name[:200], "calls": calls / runs, "ms": ms / runs} for name, (calls, ms) in spent.items()]
    return sorted(found, key=lambda op: -op["ms"])[:200]


def import_tflite_runtime():
    """Return the interpreter module and its name with version, of ai_edge_litert or else of its predecessor tflite_runtime."""
    for module, package in (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")):
        try:
            interpreter = __import__(f"{module}.interpreter", fromlist=["Interpreter"])
        except ImportError:
            continue
        return interpreter, version_of(package)
    raise RunnerError("runtime", f"neither ai_edge_litert nor tflite_runtime imports in {sys.executable}; pip install ai-edge-litert")


def version_of(package):
    """Return `package 1.2.3`, without the number where the installer kept none."""
    from importlib import metadata

    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise RunnerError("runtime", f"torch does not import in {sys.executable}; pip install torch") from error
    return torch


def order_details(interpreter, kind):
    """Return the details of "inputs" or "outputs" in the order of the model's arguments or results.

    A file may store them in any order; its signature names them args_0, args_1, … and output_0, output_1, …, where the converter did.
    """
    details = getattr(interpreter, f"get_{kind[:-1]}_details")()
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1 or len(details) == 1:
        return details
    ((key, signature),) = signatures.items()
    numbers = {name: re.search(r"(\d+)$", name) for name in signature[kind]}
    if not all(numbers.values()):
        return details
    named = getattr(interpreter.get_signature_runner(key), f"get_{kind[:-1]}_details")()
    by_index = {detail["index"]: detail for detail in details}
    return [by_index[named[name]["index"]] for name in sorted(numbers, key=lambda name: int(numbers[name].group(1)))]


def is_integer(detail):
    return detail["dtype"].__name__.startswith(("int", "uint"))


def quantize_array(array, detail):
    """Return `array` in the tensor's dtype; floats for an integer tensor with a scale become round(x / scale) + zero_point, clipped."""
    import numpy as np

    scale, zero_point = detail["quantization"]
    if is_integer(detail) and scale > 0 and array.dtype.kind == "f":
        limits = np.iinfo(detail["dtype"])
        array = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max)
    return array.astype(detail["dtype"])


def dequantize_array(array, detail):
    """Return `array` as float32; values q of an integer tensor with a scale become (q - zero_point) * scale."""
    scale, zero_point = detail["quantization"]
    if is_integer(detail) and scale > 0:
        return ((array.astype("float32") - zero_point) * scale).astype("float32")
    return array.astype("float32")


def value_range(dtype):
    """Return the range (low, high) of random inputs; integers are indices, of which only 0 is known to be valid."""
    return (-1.0, 1.0) if dtype.startswith("float") else (0.0, 0.0)


def quantized_value_range(detail):
    """Return the range (low, high) of random inputs: the range of the quantization, else that of the dtype."""
    import numpy as np

    scale, zero_point = detail["quantization"]
    if not is_integer(detail) or (not scale and np.iinfo(detail["dtype"]).bits > BITS_PER_BYTE):
        return value_range(detail["dtype"].__name__)
    limits = np.iinfo(detail["dtype"])
    return (limits.min - zero_point) * (scale or 1.0), (limits.max - zero_point) * (scale or 1.0)


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
