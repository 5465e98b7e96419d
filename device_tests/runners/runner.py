"""Run model files on this device: `python runner.py request.json`, or `python runner.py -` for requests from standard input.

It needs Python 3.9 or newer, numpy, one runtime, and `runner_backends.py` and `runner_machine.py` beside it. README.md describes the
protocol. Paths in a request are relative to the request's folder. The reply is written as a temporary file and renamed, also when
something fails, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.dont_write_bytecode = True  # this folder belongs to one run and holds nothing but its files

from runner_backends import BACKENDS, RunnerError, first_line  # noqa: E402
from runner_machine import compare_snapshots, describe_machine, pin_to_processors, read_peak_rss_bytes, set_thread_variables, take_snapshot  # noqa: E402

SCHEMA = 1
NAME = "edgecompress-runner 3"
ERROR_EXIT = 10
PROFILED_RUNS = 10
SLOW_MS = 10_000.0  # An inference of this length spends little of it on what a runtime does once: the first is its warm-up.
MAX_ROUNDS = 10_000  # More change a median or an interval by nothing that could be seen.
MAX_TIMES = 400_000  # Of all artifacts together: a reply of 5 MB.
MAX_WARMUPS = 100


def load_artifacts(request, folder):
    """Check the hash of each artifact and load it; return [(model, the part of its result that is known already)]."""
    loaded = []
    for artifact in request["artifacts"]:
        digest = hash_file(folder / artifact["path"])
        if digest != artifact["sha256"]:
            raise RunnerError("hash", f"{artifact['path']}: SHA-256 is {digest}, expected {artifact['sha256']}; it was damaged on the way")
        if artifact["format"] not in BACKENDS:
            raise RunnerError("request", f"unknown format {artifact['format']!r}; this runner knows {', '.join(BACKENDS)}")
        start = time.perf_counter()
        model = open_model(request, artifact, folder)
        load_ms = milliseconds_since(start)
        loaded.append((model, {"sha256": digest, "backend": model.backend, "load_ms": load_ms, "notes": model.notes}))
    return loaded


def open_model(request, artifact, folder):
    return BACKENDS[artifact["format"]](
        folder / artifact["path"], request["threads"], artifact.get("input_shapes") or [], artifact.get("input_dtypes") or []
    )


class RoundSample:
    """A sample of a stream of rounds, in their order and evenly spread: all of them, or one of each `stride` neighbours at random."""

    def __init__(self, most):
        self.most = max(2, most - most % 2)
        self.rounds, self.count, self.stride = [], 0, 1
        self.random = random.Random(0)
        self.picked = 0

    def add(self, times):
        """Take the times of a further round, one of each artifact."""
        place = self.count % self.stride
        if place == 0:
            if len(self.rounds) == self.most:
                self.rounds = [self.random.choice(self.rounds[i : i + 2]) for i in range(0, self.most, 2)]
                self.stride *= 2
            self.picked = self.random.randrange(self.stride)
        if place == self.picked:
            self.rounds.append(times)
        self.count += 1


def measure_artifacts(request, folder, loaded):
    """Time every artifact in turn, A B A B, so that a disturbance meets all of them; keep raw latencies in milliseconds, whole rounds.

    The rounds are shared among `loads` loadings: the place of a model in memory makes it faster or slower while it is loaded, which
    no number of repetitions shows. Each loading has its own order of artifacts, since each model runs with the caches as its predecessor
    left them.
    """
    models, results = [model for model, _ in loaded], [result for _, result in loaded]
    samples = [random_inputs(model) for model in models]
    before = take_snapshot()  # before the warm-up: the timed inferences of a small file may end before the clock of other programs ticks
    warm = [RoundSample(MAX_WARMUPS) for _ in models]
    for model, result, sample, times in zip(models, results, samples, warm):
        model.prepare(sample)
        start = time.perf_counter()
        result["first_ms"] = time_inference(model)
        while result["first_ms"] < SLOW_MS and (not times.count or time.perf_counter() - start < request["warmup_s"]):
            times.add([time_inference(model)])
        result["latency_ms"], result["rounds"], result["latency_count"] = [], [], 0
    order = list(range(len(models)))
    start = time.perf_counter()
    loads = max(1, min(request.get("loads", 1), request["repetitions"]))
    for k in range(loads):
        if k:
            order = rotate_order(k, len(models))
            for i in order:
                models[i] = None  # freed first, so that memory holds one of each
                models[i] = open_model(request, request["artifacts"][i], folder)
                models[i].prepare(samples[i])
            for i in order:
                for _ in range(2 if results[i]["first_ms"] < SLOW_MS else 0):
                    warm[i].add([time_inference(models[i])])
        share = request["repetitions"] * (k + 1) // loads - request["repetitions"] * k // loads
        sample = RoundSample(min(MAX_ROUNDS, MAX_TIMES // len(models)) // loads)
        run_rounds(models, order, share, start + request["time_limit_s"], sample)
        for i, result in enumerate(results):
            result["latency_ms"] += [times[i] for times in sample.rounds]
            result["rounds"].append(len(sample.rounds))
            result["latency_count"] += sample.count
        if time.perf_counter() - start > request["time_limit_s"]:
            break
    told = compare_snapshots(before, take_snapshot())
    for model, result, times in zip(models, results, warm):
        result["warmup_ms"], result["warmup_count"] = [ms for (ms,) in times.rounds], times.count
        if request.get("profile"):
            result["profile"] = model.profile(max(1, min(PROFILED_RUNS, int(SLOW_MS / max(result["latency_ms"][-1], 1e-6)))))
            result["notes"] = model.notes
    return {"results": results, **told}


def rotate_order(k, n):
    """Return the order of `n` artifacts in loading `k`; over the loadings each is first, and follows each neighbour, equally often."""
    order = [(i + k // 2) % n for i in range(n)]
    return order[::-1] if k % 2 else order


def run_rounds(models, order, most, end, sample):
    """Time each model once a round, in this order, until the time is up, at least one round; give each round to `sample`."""
    done = 0
    while done < most:
        times = [0.0] * len(models)
        for i in order:
            times[i] = time_inference(models[i])
        sample.add(times)
        done += 1
        if time.perf_counter() > end:
            break


def random_inputs(model):
    """Return random inputs, the same for all artifacts with the same shapes."""
    import numpy as np

    generator = np.random.default_rng(0)
    return [generator.uniform(low, high, shape).astype(np.float32) for shape, low, high in model.inputs]


def infer_samples(request, folder, loaded):
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
    return {"results": [result], "outputs_sha256": hash_file(path)}


MODES = {"measure": measure_artifacts, "infer": infer_samples}


def answer_request(request, folder):
    """Return the reply to a request.

    Raises:
        RunnerError: The request cannot be carried out; says why.
    """
    if request.get("schema") != SCHEMA or request.get("mode") not in MODES:
        raise RunnerError("request", f"this is {NAME}: schema {SCHEMA}, modes {', '.join(MODES)}")
    if not isinstance(request["threads"], int) or request["threads"] < 1:
        raise RunnerError("request", f"threads {request['threads']!r}: not a positive number")
    mask = request.get("cpu_mask") or ""
    if mask and (why := pin_to_processors(mask)):
        raise RunnerError("request", why)
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    reply = MODES[request["mode"]](request, folder, load_artifacts(request, folder))
    return {
        "schema": SCHEMA,
        "nonce": request["nonce"],
        "runner": NAME,
        "threads": request["threads"],
        "started_at": started_at,
        "machine": describe_machine(),
        "cpu_mask": mask,
        "peak_rss_bytes": read_peak_rss_bytes(),
        **reply,
    }


def time_inference(model):
    start = time.perf_counter()
    model.invoke()
    return round(milliseconds_since(start), 6)


def milliseconds_since(start):
    return (time.perf_counter() - start) * 1e3


def hash_file(path):
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise RunnerError("request", f"{path.name}: {error.strerror}") from error
    return digest.hexdigest()


def carry_out(path):
    """Carry out the request in a file, leave the reply beside it, and return the exit status."""
    request = json.loads(path.read_text(encoding="utf-8"))
    folder = path.resolve().parent
    try:
        set_thread_variables(request["threads"])
        reply = answer_request(request, folder)
    except RunnerError as error:
        reply = {"nonce": request.get("nonce"), "error": {"kind": error.kind, "message": str(error)}}
    except MemoryError:
        reply = {"nonce": request.get("nonce"), "error": {"kind": "memory", "message": "out of memory"}}
    except Exception as error:  # any error of a runtime must reach the other side
        reply = {"nonce": request.get("nonce"), "error": {"kind": "internal", "message": f"{type(error).__name__}: {first_line(error)}"}}
    temporary = folder / (request["reply"] + ".tmp")
    temporary.write_text(json.dumps(reply), encoding="utf-8")
    temporary.replace(folder / request["reply"])
    return ERROR_EXIT if "error" in reply else 0


def serve():
    """Carry out the requests whose paths are lines of standard input; print a 0 after each, and end after one that failed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # runtimes print
    code = 0
    for line in iter(sys.stdin.readline, ""):
        code = carry_out(Path(line.rstrip("\n")))
        if code:
            break
        answers.write("0\n")
        answers.flush()
    return code


def main(argv):
    if len(argv) != 2:
        print("usage: runner.py request.json", file=sys.stderr)  # noqa: T201
        return 2
    return serve() if argv[1] == "-" else carry_out(Path(argv[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
