"""Train one network, export it with edgecompress and by the peer, and print what is told and what is true: `fidelity_jobs.py TASK FOLDER`.

The last line is JSON: the dense network's metric, each file with its manifest's numbers and those computed from the file, and the peer's
plain int8 of the dense network: litert-torch, then ai-edge-quantizer with its own static recipe and its own rule for ranges. `--quick`
takes fewer samples, fewer epochs and the int8-static scheme alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity_data import Data, Items
from fidelity_formulas import KEEP, METRICS, Array, run_file
from fidelity_tasks import TASKS, Task, train
from torch import nn
from torch.utils._pytree import tree_map

import edgecompress
from edgecompress.errors import EdgeCompressError

EPOCHS, QUICK_EPOCHS = 4, 1  # of fine-tuning, so that the benchmark takes minutes
QUICK = {"epochs": QUICK_EPOCHS, "scheme": ("int8-static",)}
CALIBRATION_SAMPLES = 200


def export(task: Task, name: str, model: nn.Module, data: Data, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Export a network to TFLite at default options but for the epochs, and in the quick form the schemes; return how it ended."""
    train_data, eval_data = data if task.labelled else (Items(part.inputs, None, part.source) for part in data)
    given = {argument: getattr(task, argument) for argument in task.given}
    start, error = time.perf_counter(), ""
    code = 0
    try:
        edgecompress.export(
            model,
            (data.train.inputs[:1],),
            run=folder,
            name=name,
            train_data=train_data,
            eval_data=eval_data,
            format=("tflite",),
            **(QUICK if quick else {"epochs": EPOCHS}),
            **given,
        )
    except EdgeCompressError as raised:
        error, code = str(raised), raised.exit_code
    return {"seconds": time.perf_counter() - start, "error": error, "exit_code": code}


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


def quantize_by_peer(model: nn.Module, data: Data, path: Path) -> None:
    """Write the dense network as int8 by litert-torch and ai-edge-quantizer, as their tutorials do."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    first = data.train.inputs[:1]
    floating = path.with_suffix(".float.tflite")
    litert_torch.convert(model, (first,)).export(str(floating))
    tool = quantizer.Quantizer(str(floating), recipe.static_wi8_ai8())
    kind = np.int32 if first.dtype == torch.int64 else np.float32
    samples = [{"args_0": x[None].numpy().astype(kind)} for x in data.train.inputs[:CALIBRATION_SAMPLES]]
    tool.quantize(tool.calibrate({"serving_default": samples})).export_model(str(path), overwrite=True)


def judge_peer(
    name: str, model: nn.Module, data: Data, reference: dict[str, Array], kinds: list[dict[str, Any]], path: Path
) -> dict[str, Any]:
    """Return the metric of the peer's file and the least that it keeps of an output, judged by the same kinds."""
    try:
        quantize_by_peer(model, data, path)
        outputs = run_file(path, data.held_out.inputs.numpy(), reference)
    except Exception as error:  # whatever the peer raises is told
        return {"error": f"{type(error).__name__}: {error}"}
    kept = [KEEP[each["kind"]](y, wanted, each) for each, y, wanted in zip(kinds, outputs, reference.values(), strict=False)]
    return {"metric": METRICS[name](outputs, to_arrays(data.held_out.targets)), "bytes": path.stat().st_size, "kept": kept}


def to_arrays(targets: Any) -> Any:
    return tree_map(lambda column: column.numpy(), targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task: Task = TASKS[given.task]
    start = time.perf_counter()
    data = task.data(*(task.few if given.quick else task.samples))
    model = train(task, data)
    trained_s = time.perf_counter() - start
    with torch.no_grad():
        outputs = model(data.held_out.inputs)
    named = outputs if isinstance(outputs, dict) else {"output_0": outputs}
    reference = {output: y.numpy() for output, y in named.items()}
    ended = export(task, given.task, model, data, given.folder / "run", quick=given.quick)
    manifests = sorted((given.folder / "run" / "artifacts").glob("*.tflite*.json"))
    files = [judge_file(given.task, manifest.with_suffix(""), data, reference, json.loads(manifest.read_text())) for manifest in manifests]
    kinds = next((file["kept"] for file in files), [])
    told = {
        "dense": METRICS[given.task](list(reference.values()), to_arrays(data.held_out.targets)),
        "chance": task.chance,
        "trained_s": trained_s,
        "export": ended,
        "files": files,
        "peer": judge_peer(given.task, model, data, reference, kinds, given.folder / "peer.tflite"),
    }
    print(f"\n{json.dumps(told)}")


if __name__ == "__main__":
    main()
