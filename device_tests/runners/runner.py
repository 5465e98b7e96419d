"""Run model files on the device this program lies on: `python runner.py request.json`.

Python 3.9 or newer, numpy and one runtime; `runner_backends.py` and `runner_machine.py` lie beside it. The protocol is described in
README.md. Paths in a request are relative to the request's folder. The reply is written as a temporary file and renamed, also when
something fails, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.dont_write_bytecode = True  # the folder this lies in is not ours to fill

from runner_backends import BACKENDS, RunnerError, first_line  # noqa: E402
from runner_machine import changes, fix_threads, machine, peak_rss_bytes, pin, snapshot  # noqa: E402

SCHEMA = 1
NAME = "edgecompress-runner 2"
ERROR_EXIT = 10
PROFILED_RUNS = 10


# --- what is asked ---


def load(request, folder):
    """Check each artifact's hash and load it; return [(model, result so far)]."""
    loaded = []
    for artifact in request["artifacts"]:
        digest = file_hash(folder / artifact["path"])
        if digest != artifact["sha256"]:
            raise RunnerError("hash", f"{artifact['path']}: SHA-256 is {digest}, expected {artifact['sha256']}; it was damaged on the way")
        if artifact["format"] not in BACKENDS:
            raise RunnerError("request", f"unknown format {artifact['format']!r}; this runner knows {', '.join(BACKENDS)}")
        start = time.perf_counter()
        model = opened(request, artifact, folder)
        load_ms = milliseconds(start)
        loaded.append((model, {"sha256": digest, "backend": model.backend, "load_ms": load_ms, "notes": model.notes}))
    return loaded


def opened(request, artifact, folder):
    return BACKENDS[artifact["format"]](
        folder / artifact["path"], request["threads"], artifact.get("input_shapes") or [], artifact.get("input_dtypes") or []
    )


def measure(request, folder, loaded):
    """Time every artifact in turn, A B A B, so that a disturbance meets all of them; keep each raw latency in milliseconds.

    The rounds are shared among `loads` loadings: where in memory a model lies makes it faster or slower for as long as it lies there, which
    no number of repetitions shows. Each loading has its own order of artifacts, since each runs in what its predecessor left in the caches.
    """
    models, results = [model for model, _ in loaded], [result for _, result in loaded]
    samples = [values(model) for model in models]
    before = snapshot()  # ahead of the warm-up: the timed inferences of a small file are over before a clock tick tells of others
    for model, result, sample in zip(models, results, samples):
        model.prepare(sample)
        result["first_ms"] = timed(model)
        result["warmup_ms"] = []
        start = time.perf_counter()
        while not result["warmup_ms"] or time.perf_counter() - start < request["warmup_s"]:
            result["warmup_ms"].append(timed(model))
        result["latency_ms"], result["rounds"] = [], []
    order = list(range(len(models)))
    start = time.perf_counter()
    loads = max(1, min(request.get("loads", 1), request["repetitions"]))
    for k in range(loads):
        if k:
            order = order_of(k, len(models))
            for i in order:
                models[i] = None  # freed first, so that memory holds one of each
                models[i] = opened(request, request["artifacts"][i], folder)
                models[i].prepare(samples[i])
            for i in order:
                results[i]["warmup_ms"] += [timed(models[i]), timed(models[i])]
        share = request["repetitions"] * (k + 1) // loads - request["repetitions"] * k // loads
        done = rounds(models, results, order, share, start + request["time_limit_s"])
        for result in results:
            result["rounds"].append(done)
        if time.perf_counter() - start > request["time_limit_s"]:
            break
    told = changes(before, snapshot())
    if request.get("profile"):
        for model, result in zip(models, results):
            result["profile"] = model.profile(PROFILED_RUNS)
            result["notes"] = model.notes
    return {"results": results, **told}


def order_of(k, n):
    """Return the order of `n` artifacts in loading `k`: each is first equally often, and follows each neighbour equally often."""
    order = [(i + k // 2) % n for i in range(n)]
    return order[::-1] if k % 2 else order


def rounds(models, results, order, most, end):
    """Time each model once a round, in this order; return how many rounds there was time for, at least one."""
    done = 0
    while done < most:
        for i in order:
            results[i]["latency_ms"].append(timed(models[i]))
        done += 1
        if time.perf_counter() > end:
            break
    return done


def values(model):
    """Return random inputs, the same ones for each artifact with the same shapes."""
    import numpy as np

    generator = np.random.default_rng(0)
    return [generator.uniform(low, high, shape).astype(np.float32) for shape, low, high in model.inputs]


def infer(request, folder, loaded):
    """Run every sample of `inputs` (input_i: (n, …), float32 or integers) with batch 1; write output_i: (n, …) float32 to `outputs`."""
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
    mask = request.get("cpu_mask") or ""
    if mask and (why := pin(mask)):
        raise RunnerError("request", why)
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    reply = MODES[request["mode"]](request, folder, load(request, folder))
    return {
        "schema": SCHEMA,
        "nonce": request["nonce"],
        "runner": NAME,
        "threads": request["threads"],
        "started_at": started_at,
        "machine": machine(),
        "cpu_mask": mask,
        "peak_rss_bytes": peak_rss_bytes(),
        **reply,
    }


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
