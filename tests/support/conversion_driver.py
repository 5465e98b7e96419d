"""Convert requests of one format in a process that stays: `conversion_driver.py FORMAT`, a program.

Importing a toolchain takes longer than converting a small network. The program reads paths of requests from standard input, one in a line,
and answers each with a line. Beside `NAME.json` it leaves `NAME.reply`, or `NAME.refused` with the class and message of the error. Where
inputs lie in `NAME.data`, it also runs the file in the runner's runtime: `NAME.npz` has the outputs, `NAME.run` what else was seen.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from edgecompress.devices.layouts import to_artifact_layout
from edgecompress.records import ConversionReply, ConversionRequest, from_json, to_json
from edgecompress.toolchains import program_root, runner_parts


def import_programs(form: str) -> tuple[Any, Any]:
    """Return the converter program of a format, as a module, and the runner's class of its runtime."""
    sys.path[:1] = [str(program_root()), str(runner_parts()[0].parent)]
    from runner_backends import BACKENDS

    return importlib.import_module(f"converters.to_{form}"), BACKENDS[form]


def convert(program: Any, path: Path) -> tuple[ConversionRequest, ConversionReply, float]:
    """Convert one request; return it with the reply and the seconds that the conversion took."""
    request = from_json(path.read_bytes(), ConversionRequest, source=str(path))
    started = time.perf_counter()
    content, reply = program.convert(request)
    seconds = time.perf_counter() - started
    Path(request.output).write_bytes(content)
    return request, reply, seconds


def run_file(
    backend: Any, request: ConversionRequest, reply: ConversionReply, path: Path, threads: int = 1
) -> tuple[Any, list[np.ndarray]]:
    """Return the loaded model and its outputs on all inputs in `.data`."""
    tensors = load_file(path.with_suffix(".data"))
    data = to_artifact_layout(tuple(tensors[f"input_{i}"] for i in range(len(tensors))), reply.inputs)
    model = backend(Path(request.output), threads, [spec.shape for spec in reply.inputs], [spec.dtype for spec in reply.inputs])
    runs = [model.run([x[k : k + 1] for x in data]) for k in range(len(data[0]))]
    return model, [np.concatenate(each) for each in zip(*runs, strict=True)]


def write_refusal(path: Path, error: Exception) -> None:
    path.with_suffix(".refused").write_text(f"{type(error).__name__}: {error}")


def _count_further_threads(backend: Any, request: ConversionRequest) -> int:
    """Return how many threads more the process has with a model of 3 threads than with one of 1."""
    counts = []
    for threads in (1, 3):
        model = backend(Path(request.output), threads, [], [])
        counts.append(len(list(Path("/proc/self/task").iterdir())))
        del model
    return counts[1] - counts[0]


def main(form: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # toolchains print
    program, backend = import_programs(form)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            request, reply, _ = convert(program, path)
            if path.with_suffix(".data").exists():
                model, outputs = run_file(backend, request, reply, path)
                np.savez(path.with_suffix(".npz"), *outputs)
                names = sorted(model.program.method_names - {"forward"}) if form == "executorch" else []
                seen: dict[str, Any] = {"constants": {name: model.program.load_method(name).execute([]) for name in names}}
                del model
                if form in ("onnx", "executorch"):
                    seen["further_threads"] = _count_further_threads(backend, request)
                path.with_suffix(".run").write_text(json.dumps(seen))
            path.with_suffix(".reply").write_bytes(to_json(reply))
        except Exception as error:
            write_refusal(path, error)
            traceback.print_exc()
        answers.write(f"{path}\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
