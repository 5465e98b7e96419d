"""Convert and run the cells of one converter, all in one process: `matrix_worker.py FORMAT REQUEST.json …`, a program.

Importing a toolchain takes longer than converting a small network, and the float file that most schemes are made of longer than the rest:
each is done once. Beside each request it leaves `.reply` and `.npz`, the file's outputs on `.data`, or `.refused`, as soon as they are
there: what is missing when this process has died was what killed it.
"""

import copy
import hashlib
import importlib
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from google.protobuf.message import Message
from safetensors.numpy import load_file

from edgecompress.errors import EdgeCompressError
from edgecompress.records import ConversionRequest, from_json, to_json
from edgecompress.toolchains import program_root, runner_parts

THREADS = 1
KEPT = 2  # one model with its weights as they are, and with weights rounded for integer activations
# Format and route: the module, and its function of a program that no scheme changes.
SHARED = {
    ("tflite", "litert-torch"): ("converters.tflite.litert_torch_route", "lower_program"),
    ("tflite", "onnx2tf"): ("converters.tflite.onnx2tf_route", "keras_model"),
    ("onnx", ""): ("converters.onnx.export", "export"),
}


def main(form: str, *paths: str) -> None:
    sys.path[:1] = [str(program_root()), str(runner_parts()[0].parent)]
    program = importlib.import_module(f"converters.to_{form}")
    from runner_backends import BACKENDS

    requests = {Path(path): from_json(Path(path).read_bytes(), ConversionRequest, source=path) for path in paths}
    for key in {(form, request.route) for request in requests.values()} & set(SHARED):
        module, name = SHARED[key]
        share(importlib.import_module(module), name)
    for path, request in requests.items():
        started = time.perf_counter()
        try:
            content, reply = program.convert(request)
            spent = time.perf_counter() - started
            Path(request.output).write_bytes(content)
            data = [np.ascontiguousarray(x) for x in _laid_out(load_file(path.with_suffix(".data")), reply.inputs)]
            model = BACKENDS[form](
                Path(request.output), THREADS, [spec.shape for spec in reply.inputs], [spec.dtype for spec in reply.inputs]
            )
            runs = [model.run([x[k : k + 1] for x in data]) for k in range(len(data[0]))]
            np.savez(path.with_suffix(".npz"), *(np.concatenate(each) for each in zip(*runs, strict=True)), seconds=spent)
            path.with_suffix(".reply").write_bytes(to_json(reply))
        except EdgeCompressError as error:
            path.with_suffix(".refused").write_text(f"{type(error).__name__}: {error}")
        except Exception:  # of any toolchain; `answer` in edgecompress.artifacts.converter_process would let it end the process
            path.with_suffix(".refused").write_text(f"uncaught: {traceback.format_exc().strip().splitlines()[-1]}")
            traceback.print_exc()


def share(module, name):
    """Let a function of an exported program be computed once for equal programs that follow each other closely."""
    compute, made = getattr(module, name), {}

    def shared(program, *args, **kwargs):
        key = _digest(program), args, tuple(sorted(kwargs.items()))
        if key not in made:
            if len(made) == KEPT:
                made.clear()
            made[key] = compute(program, *args, **kwargs)
        given = made[key]
        return copy.deepcopy(given) if isinstance(given, Message) else given  # ONNX models are changed in place

    setattr(module, name, shared)


def _digest(program):
    digest = hashlib.sha256(str(program.graph).encode())
    for name, value in sorted({**program.state_dict, **program.constants}.items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.digest()


def _laid_out(data, specs):
    ordered = (data[f"input_{i}"] for i in range(len(data)))
    return (x.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else x for x, spec in zip(ordered, specs, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
