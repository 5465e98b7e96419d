"""Run model files on the device this program lies on: `python runner.py request.json`.

One file, Python 3.9 or newer, numpy and one runtime: `ai_edge_litert` or `tflite_runtime` for tflite, torch for torchscript. The protocol
is described in README.md beside this file. Paths in a request are relative to the request's folder. The reply is written as a
temporary file and renamed, also when something fails, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path

SCHEMA = 1
NAME = "edgecompress-runner 1"
ERROR_EXIT = 10


class RunnerError(Exception):
    """A failure with a name: request, hash, runtime, artifact or inputs."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


# --- backends: format -> class(path, threads, input_shapes) with .inputs [(shape, low, high)] .prepare .invoke .run .backend .notes ---


class TFLiteModel:
    """A TFLite file in `Interpreter` with its default XNNPACK delegate.

    `CompiledModel` is avoided: in ai-edge-litert 2.3 it needs LSE atomics and dies with SIGILL on Cortex-A53 and A72 (Raspberry Pi 3, 4).
    """

    def __init__(self, path, threads, input_shapes):
        module, self.backend = tflite_runtime()
        self.notes = []
        try:
            self.interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise RunnerError("artifact", f"{path.name}: {self.backend} refused it: {error}") from error
        self.input_details = in_order(self.interpreter, "inputs")
        self.output_details = in_order(self.interpreter, "outputs")
        self.inputs = [(tuple(int(size) for size in detail["shape"]), *real_range(detail)) for detail in self.input_details]

    def run(self, arrays):
        """Return the outputs as float32 arrays for float32 `arrays` in the artifact's own shapes."""
        self.prepare(arrays)
        self.interpreter.invoke()
        return [dequantized(self.interpreter.get_tensor(detail["index"]), detail) for detail in self.output_details]

    def invoke(self):
        self.interpreter.invoke()

    def prepare(self, arrays):
        """Set the inputs once, so that only the inference itself is timed."""
        for detail, array in zip(self.input_details, arrays):
            self.interpreter.set_tensor(detail["index"], quantized(array, detail))


class TorchScriptModel:
    """A `.ptl` file in torch's lite interpreter. It does not tell its input shapes, so the request must."""

    def __init__(self, path, threads, input_shapes):
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
        self.inputs = [(tuple(shape), -1.0, 1.0) for shape in input_shapes]

    def _choose_engine(self):
        """Set the engine before loading: quantized weights are packed for it then. Files for ARM are made for qnnpack."""
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
        self.tensors = [self.torch.from_numpy(array) for array in arrays]


BACKENDS = {"tflite": TFLiteModel, "torchscript": TorchScriptModel}


def tflite_runtime():
    """Return the interpreter module and its name with version: ai_edge_litert, else its predecessor tflite_runtime."""
    from importlib import metadata

    for module, package in (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")):
        try:
            interpreter = __import__(f"{module}.interpreter", fromlist=["Interpreter"])
        except ImportError:
            continue
        try:
            return interpreter, f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            return interpreter, package
    raise RunnerError("runtime", f"neither ai_edge_litert nor tflite_runtime imports in {sys.executable}; pip install ai-edge-litert")


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise RunnerError("runtime", f"torch does not import in {sys.executable}; pip install torch") from error
    return torch


def in_order(interpreter, kind):
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


def quantized(array, detail):
    """Return `array` in the tensor's dtype: round(x / scale) + zero_point, clipped, when it is an integer with a scale."""
    import numpy as np

    scale, zero_point = detail["quantization"]
    if is_integer(detail) and scale > 0:
        limits = np.iinfo(detail["dtype"])
        array = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max)
    return array.astype(detail["dtype"])


def dequantized(array, detail):
    """Return float32: (q - zero_point) * scale when the tensor is an integer with a scale."""
    scale, zero_point = detail["quantization"]
    if is_integer(detail) and scale > 0:
        return ((array.astype("float32") - zero_point) * scale).astype("float32")
    return array.astype("float32")


def real_range(detail):
    """Return the (low, high) of real values to measure with: what the quantization can represent, else (-1, 1)."""
    import numpy as np

    scale, zero_point = detail["quantization"]
    if not is_integer(detail):
        return -1.0, 1.0
    limits = np.iinfo(detail["dtype"])
    return (limits.min - zero_point) * (scale or 1.0), (limits.max - zero_point) * (scale or 1.0)


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- what is asked ---


def load(request, folder):
    """Check each artifact's hash and load it; return [(model, result so far)]."""
    loaded = []
    for artifact in request["artifacts"]:
        path = folder / artifact["path"]
        digest = file_hash(path)
        if digest != artifact["sha256"]:
            raise RunnerError("hash", f"{artifact['path']}: SHA-256 is {digest}, expected {artifact['sha256']}; it was damaged on the way")
        if artifact["format"] not in BACKENDS:
            raise RunnerError("request", f"unknown format {artifact['format']!r}; this runner knows {', '.join(BACKENDS)}")
        start = time.perf_counter()
        model = BACKENDS[artifact["format"]](path, request["threads"], artifact.get("input_shapes") or [])
        load_ms = milliseconds(start)
        loaded.append((model, {"sha256": digest, "backend": model.backend, "load_ms": load_ms, "notes": model.notes}))
    return loaded


def measure(request, folder, loaded):
    """Time every artifact in turn, A B A B, so that a disturbance meets all of them; keep each raw latency in milliseconds."""
    import numpy as np

    generator = np.random.default_rng(0)
    for model, result in loaded:
        model.prepare([generator.uniform(low, high, shape).astype(np.float32) for shape, low, high in model.inputs])
        result["first_ms"] = timed(model)
        result["warmup_ms"] = []
        start = time.perf_counter()
        while not result["warmup_ms"] or time.perf_counter() - start < request["warmup_s"]:
            result["warmup_ms"].append(timed(model))
        result["latency_ms"] = []
    start = time.perf_counter()
    for _ in range(request["repetitions"]):
        for model, result in loaded:
            result["latency_ms"].append(timed(model))
        if time.perf_counter() - start > request["time_limit_s"]:
            break
    return {"results": [result for _, result in loaded]}


def infer(request, folder, loaded):
    """Run every sample of `inputs` (input_i: (n, …) float32) with batch 1; write output_i: (n, …) float32 to `outputs`."""
    import numpy as np

    ((model, result),) = loaded
    try:
        with np.load(folder / request["inputs"], allow_pickle=False) as archive:
            inputs = [archive[f"input_{i}"] for i in range(len(archive.files))]
    except (OSError, ValueError, KeyError) as error:
        raise RunnerError("inputs", f"{request['inputs']}: {error}") from error
    if len(inputs) != len(model.inputs):
        raise RunnerError("inputs", f"{len(inputs)} inputs given, the artifact takes {len(model.inputs)}")
    for array, (shape, _, _) in zip(inputs, model.inputs):
        if array.shape[1:] != shape[1:] or shape[0] != 1:
            raise RunnerError("inputs", f"samples have shape {array.shape[1:]}, the artifact takes {shape} with batch 1")
    outputs = []
    for i in range(len(inputs[0])):
        for j, output in enumerate(model.run([array[i : i + 1] for array in inputs])):
            if i == 0:
                outputs.append(np.empty((len(inputs[0]), *output.shape[1:]), np.float32))
            outputs[j][i : i + 1] = output
    path = folder / request["outputs"]
    with path.open("wb") as file:
        np.savez(file, **{f"output_{i}": output for i, output in enumerate(outputs)})
    return {"results": [result], "outputs_sha256": file_hash(path)}


MODES = {"measure": measure, "infer": infer}


def answer(request, folder):
    """Return the reply to a request.

    Raises:
        RunnerError: It cannot be done; says why.
    """
    if request.get("schema") != SCHEMA or request.get("mode") not in MODES:
        raise RunnerError("request", f"this is {NAME}: schema {SCHEMA}, modes {', '.join(MODES)}")
    if not isinstance(request["threads"], int) or request["threads"] < 1:
        raise RunnerError("request", f"threads {request['threads']!r}: not a positive number")
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = load_average(), temperature()
    reply = MODES[request["mode"]](request, folder, load(request, folder))
    after = load_average(), temperature()
    return {
        "schema": SCHEMA,
        "nonce": request["nonce"],
        "runner": NAME,
        "threads": request["threads"],
        "started_at": started_at,
        "machine": machine(),
        "load_average": [before[0], after[0]],
        "temperature_c": [before[1], after[1]],
        "peak_rss_bytes": peak_rss_bytes(),
        **reply,
    }


# --- the machine ---


def timed(model):
    start = time.perf_counter()
    model.invoke()
    return milliseconds(start)


def milliseconds(start):
    return (time.perf_counter() - start) * 1e3


def file_hash(path):
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise RunnerError("request", f"{path.name}: {error.strerror}") from error
    return digest.hexdigest()


def read_text(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def machine():
    """Return abi, os, python, CPU model, CPU features and governor; "" or [] where the system does not tell."""
    cpu = dict(re.findall(r"^([A-Za-z_ ]+?)\s*:\s*(.*)$", read_text("/proc/cpuinfo"), re.MULTILINE))
    return {
        "abi": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": read_text("/proc/device-tree/model") or cpu.get("model name", "") or cpu.get("Hardware", "") or platform.processor(),
        "cpu_features": (cpu.get("Features") or cpu.get("flags") or "").split(),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def temperature():
    """Return the hottest thermal zone in °C, or None; zones are in millidegrees and some report nonsense."""
    zones = [read_text(path) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(zone) / 1e3 for zone in zones if re.fullmatch(r"-?\d+", zone)]
    return max((value for value in degrees if 0 < value < 150), default=None)


def load_average():
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def peak_rss_bytes():
    """Return this process's peak resident set: all artifacts of one run share it."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fix_threads(threads):
    """Set what the runtimes read at import: libgomp's spinning makes two busy processes crawl."""
    os.environ["GOMP_SPINCOUNT"] = "0"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def main(argv):
    if len(argv) != 2:
        print("usage: runner.py request.json", file=sys.stderr)  # noqa: T201
        return 2
    path = Path(argv[1])
    request = json.loads(path.read_text(encoding="utf-8"))
    folder = path.resolve().parent
    try:
        fix_threads(request["threads"])
        reply = answer(request, folder)
    except RunnerError as error:
        reply = {"nonce": request.get("nonce"), "error": {"kind": error.kind, "message": str(error)}}
    except MemoryError:
        reply = {"nonce": request.get("nonce"), "error": {"kind": "memory", "message": "out of memory"}}
    except Exception as error:  # whatever a runtime raises must reach the other side
        reply = {"nonce": request.get("nonce"), "error": {"kind": "internal", "message": f"{type(error).__name__}: {first_line(error)}"}}
    temporary = folder / (request["reply"] + ".tmp")
    temporary.write_text(json.dumps(reply), encoding="utf-8")
    temporary.replace(folder / request["reply"])
    return ERROR_EXIT if "error" in reply else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
