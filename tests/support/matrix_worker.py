"""Convert and run the cells of one converter, all in one process: `matrix_worker.py FORMAT REQUEST.json …`, a program.

Importing a toolchain takes longer than converting a small network. Beside each request it leaves `.reply` and `.npz`, the file's outputs on
`.data`, or `.refused`, as soon as they are there: what is missing when this process has died was what killed it.
"""

import importlib
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from edgecompress.errors import EdgeCompressError
from edgecompress.programs import converter, runner_parts
from edgecompress.records import ConversionRequest, from_json, to_json

THREADS = 1


def main(form: str, *paths: str) -> None:
    sys.path[:0] = [str(converter(form).parent), str(runner_parts()[0].parent)]
    program = importlib.import_module(f"to_{form}")
    from runner_backends import BACKENDS

    for path in map(Path, paths):
        request = from_json(path.read_bytes(), ConversionRequest, source=str(path))
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
        except Exception:  # of any toolchain; `answer` in edgecompress.conversion would let it end the process
            path.with_suffix(".refused").write_text(f"uncaught: {traceback.format_exc().strip().splitlines()[-1]}")
            traceback.print_exc()


def _laid_out(data, specs):
    ordered = (data[f"input_{i}"] for i in range(len(data)))
    return (x.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else x for x, spec in zip(ordered, specs, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
