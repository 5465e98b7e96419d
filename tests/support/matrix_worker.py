"""Convert and run the cells of one converter, all in one process: `matrix_worker.py FORMAT REQUEST.json …`, a program.

Importing a toolchain takes longer than converting a small network, and the float file that most schemes are made of longer than the rest:
each is done once. Beside each request it leaves `.reply` and `.npz`, the file's outputs on `.data`, or `.refused`, as soon as they are
there: what is missing when this process has died was what killed it.
"""

import copy
import hashlib
import importlib
import sys
import traceback
from pathlib import Path

import numpy as np
from conversion_driver import convert, import_programs, run_file, write_refusal
from google.protobuf.message import Message

from edgecompress.errors import EdgeCompressError
from edgecompress.records import ConversionRequest, from_json, to_json

KEPT = 2  # one model with its weights as they are, and with weights rounded for integer activations
# Format and route: the module, and its function of a program that no scheme changes.
SHARED = {
    ("tflite", "litert-torch"): ("converters.tflite.litert_torch_route", "lower_program"),
    ("tflite", "onnx2tf"): ("converters.tflite.onnx2tf_route", "make_keras_model"),
    ("onnx", ""): ("converters.onnx.export", "export_program"),
}


def main(form: str, *paths: str) -> None:
    program, backend = import_programs(form)
    routes = {from_json(Path(path).read_bytes(), ConversionRequest, source=path).route for path in paths}
    for key in {(form, route) for route in routes} & set(SHARED):
        module, name = SHARED[key]
        share(importlib.import_module(module), name)
    for path in map(Path, paths):
        try:
            request, reply, seconds = convert(program, path)
            _, outputs = run_file(backend, request, reply, path)
            np.savez(path.with_suffix(".npz"), *outputs, seconds=seconds)
            path.with_suffix(".reply").write_bytes(to_json(reply))
        except EdgeCompressError as error:
            write_refusal(path, error)
        except Exception:  # of any toolchain; a converter program would die of it
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


if __name__ == "__main__":
    main(*sys.argv[1:])
