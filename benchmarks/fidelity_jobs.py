"""Train one network, export it with edgecompress and by the peer, and return what is told and what is true.

The full form exports TFLite in the target's schemes; the quick form ONNX in int8-static, because a conversion to it takes half the time.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from fidelity_data import Data, Items
from fidelity_formulas import KEEP, METRICS, Array, run_file
from fidelity_peers import QUANTIZE
from fidelity_tasks import TASKS, Task, train
from torch import nn
from torch.utils._pytree import tree_map

import edgecompress
from edgecompress.errors import EdgeCompressError
from edgecompress.targets import FORMATS

# Fewer epochs of fine-tuning than the default, so that the benchmark takes minutes; fewer samples and inferences of the quick form.
FULL = {"format": ("tflite",), "epochs": 4}
QUICK = {"format": ("onnx",), "epochs": 1, "epoch_samples": 200, "scheme": ("int8-static",), "calibration_samples": 50, "repetitions": 5}


def export(task: Task, name: str, model: nn.Module, data: Data, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Export a network at default options but for those of the form; return how the export ended."""
    train_data, eval_data = data if task.labelled else (Items(part.inputs, None, part.source) for part in data)
    given = {argument: getattr(task, argument) for argument in task.given}
    start, error, code = cpu_seconds(), "", 0
    try:
        edgecompress.export(
            model,
            (data.train.inputs[:1],),
            run=folder,
            name=name,
            train_data=train_data,
            eval_data=eval_data,
            **(QUICK if quick else FULL),
            **given,
        )
    except EdgeCompressError as raised:
        error, code = str(raised), raised.exit_code
    return {"cpu_s": cpu_seconds() - start, "error": error, "exit_code": code}


def judge_file(name: str, path: Path, data: Data, reference: dict[str, Array], told: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a manifest beside those computed from the file."""
    outputs = run_file(path, data.held_out.inputs.numpy(), reference)
    kept = [
        {"told": each["kept"], "computed": KEEP[each["kind"]](y, wanted, each), **each}
        for each, y, wanted in zip(told["fidelity"]["outputs"], outputs, reference.values(), strict=True)
    ]  # fmt: skip
    metrics = told["metrics"] or {}
    return {
        "file": path.name,
        "model": told["model"],
        "scheme": told["quant"]["scheme"],
        "bytes": path.stat().st_size,
        "kept": kept,
        "metric": METRICS[name](outputs, to_arrays(data.held_out.targets)),
        "told_metric": next(iter(metrics.values()), None),
    }


def judge_peer(
    name: str, model: nn.Module, data: Data, reference: dict[str, Array], kinds: list[dict[str, Any]], path: Path
) -> dict[str, Any]:
    """Return the metric of the peer's file and the least that it keeps of an output, judged by the same kinds."""
    try:
        QUANTIZE[path.suffix](model, data.train.inputs, path)
        outputs = run_file(path, data.held_out.inputs.numpy(), reference)
    except Exception as error:  # whatever the peer raises is told
        return {"error": f"{type(error).__name__}: {error}"}
    kept = [KEEP[each["kind"]](y, wanted, each) for each, y, wanted in zip(kinds, outputs, reference.values(), strict=False)]
    return {"metric": METRICS[name](outputs, to_arrays(data.held_out.targets)), "bytes": path.stat().st_size, "kept": kept}


def to_arrays(targets: Any) -> Any:
    return tree_map(lambda column: column.numpy(), targets)


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it waited for."""
    return sum(os.times()[:4])


def run_job(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Train and export the network of a task.

    Returns:
        The dense network's metric, each file with its manifest's numbers and those computed from the file, and those of the peer's file.
    """
    task = TASKS[name]
    start = cpu_seconds()
    sizes = task.quick if quick else task.full
    data = task.data(*sizes.samples)
    model = train(task, sizes, data)
    trained_s = cpu_seconds() - start
    with torch.no_grad():
        outputs = model(data.held_out.inputs)
    named = outputs if isinstance(outputs, dict) else {"output_0": outputs}
    reference = {output: y.numpy() for output, y in named.items()}
    ended = export(task, name, model, data, folder / "run", quick=quick)
    suffix = FORMATS[(QUICK if quick else FULL)["format"][0]].suffix
    manifests = sorted((folder / "run" / "artifacts").glob(f"*{suffix}*.json"))
    files = [judge_file(name, manifest.with_suffix(""), data, reference, json.loads(manifest.read_text())) for manifest in manifests]
    kinds = next((file["kept"] for file in files), [])
    return {
        "dense": METRICS[name](list(reference.values()), to_arrays(data.held_out.targets)),
        "chance": task.chance,
        "trained_s": trained_s,
        "export": ended,
        "files": files,
        "peer": judge_peer(name, model, data, reference, kinds, folder / f"peer{suffix}"),
    }
