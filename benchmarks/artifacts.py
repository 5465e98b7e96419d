"""Measure one network, ResNet-20 on Fashion-MNIST, in every format and scheme: size, latency, and the loss of CP factors in int8.

The network is compressed and fine-tuned as `edgecompress export` does it, then published dense and compressed in every scheme of every
format; --quick takes the files of examples/prebuilt instead. Latencies are medians on one thread. Files of one format are measured
interleaved, each format in a process of its own. The int8-static TFLite file and its nearest rival are then measured again without the
others.

The CP rows replace the same layers at the same ranks by the factors of tensorly's parafac and of cp_epc, estimate BatchNorm anew, train
nothing, and convert both to int8-static TFLite. They give the points of top-1 lost to int8 and in all. --quick replaces two layers only.
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rows import Rows, parse
from tensorly.decomposition import parafac
from torch import nn

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import run_converter
from edgecompress.artifacts.execution import run_artifact
from edgecompress.artifacts.publish import ConversionOptions, Description, export_artifact
from edgecompress.data import fetch_samples
from edgecompress.data.recipe import Recipe, load_recipe
from edgecompress.devices.bench import bench
from edgecompress.devices.statistics import median
from edgecompress.errors import EdgeCompressError
from edgecompress.factorizations import Factors, factorize
from edgecompress.factorizations.blocks import cp_chain
from edgecompress.factorizations.blocks.layers import copy_bias, grouped_kernel
from edgecompress.factorizations.ranks import rank_by_parameter_rate
from edgecompress.factorizations.tensors.cp import kernel_tensor
from edgecompress.network.batches import Batch, take_samples
from edgecompress.network.batchnorm import reestimate_batchnorm
from edgecompress.network.exported import to_program, write_program
from edgecompress.network.outputs import top1
from edgecompress.network.surgery import forward, replace_module
from edgecompress.options import Options, gate_of, update_options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.networks import load_compressed
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.quantization.calibration import save_calibration
from edgecompress.quantization.quantize import quant_spec
from edgecompress.records import BenchmarkResult, ConversionRequest
from edgecompress.runs import open_run, use_options
from edgecompress.targets import FORMATS

PREBUILT = toolchains.REPOSITORY / "examples" / "prebuilt"
PARAMETER_RATE = 2.0  # the CP factors of a layer have half of its parameters
PARAFAC_SWEEPS = 100
CALIBRATION_SAMPLES = 500


def publish(recipe: Recipe, folder: Path) -> list[Path]:
    """Publish the dense and the compressed network in every format and scheme; print each refusal and leave that file out."""
    with open_run(folder / "run", name=recipe.name, recipe=recipe.source) as opened, use_options(opened, update_options(Options(), {})):
        context = open_context(opened, recipe)
        run_steps(context, "finetune")
        models, evidence = {"dense": context.dense, "compressed": load_compressed(context)}, context.evidence
    calibration, _ = fetch_samples(recipe.train_data(), CALIBRATION_SAMPLES, seed=0)
    made = []
    for variant, model in models.items():
        program, reference = to_program(model, recipe.example_inputs), forward(model, evidence.inputs)
        for format_name, scheme in [(name, scheme) for name, known in FORMATS.items() for scheme in known.schemes]:
            try:
                manifest = export_artifact(
                    model,
                    recipe.example_inputs,
                    folder=folder / "artifacts",
                    about=Description(name=recipe.name, variant=variant),
                    format=format_name,
                    quant=quant_spec(scheme, CALIBRATION_SAMPLES),
                    limits=gate_of(scheme, Options()),
                    evidence=evidence,
                    program=program,
                    reference=reference,
                    calibration=calibration,
                    options=ConversionOptions(route="litert-torch" if format_name == "tflite" else ""),
                )
            except EdgeCompressError as error:
                print(f"# refused: {error}", flush=True)
            else:
                made.append(folder / "artifacts" / manifest.path)
    return made


def measure_files(rows: Rows, recipe: Recipe, folder: Path, *, quick: bool) -> None:
    made = [path for known in FORMATS.values() for path in sorted(PREBUILT.glob(f"*{known.suffix}"))] if quick else publish(recipe, folder)
    results = {result.artifact: result for result in bench(made, threads=1, repetitions=100 if quick else 1000)}
    for name, result in results.items():
        dense = results.get(name.replace(recipe.name, f"{recipe.name}-dense"))
        if dense is not None and dense is not result:
            rows.add(f"ms, {name} over its dense parent", ours=ms(result), peer=ms(dense), bound=1.0)
            rows.add(f"bytes, {name} over its dense parent", ours=result.size_bytes, peer=dense.size_bytes, bound=1.0)
    ours = results[f"{recipe.name}-int8-static.tflite"]
    others = [result for result in results.values() if result is not ours]
    fastest, smallest = min(others, key=ms), min(others, key=lambda result: result.size_bytes)
    again = {path.name: path for path in made}
    mine, theirs = measure_alone(again[ours.artifact], again[fastest.artifact])
    rows.add(f"ms, int8 static TFLite over the fastest other, {fastest.artifact}", ours=mine, peer=theirs, bound=1.0)
    rows.add(
        f"bytes, int8 static TFLite over the smallest other, {smallest.artifact}",
        ours=ours.size_bytes,
        peer=smallest.size_bytes,
        bound=2.0,  # 4 bits are half of 8
    )


def measure_alone(*paths: Path) -> list[float]:
    """Return the lowest medians of these files, measured interleaved and without other files, which would take the processor's caches."""
    turns = [[ms(result) for result in bench(paths, threads=1, repetitions=500)] for _ in range(3)]
    return [min(found) for found in zip(*turns, strict=True)]


def ms(result: BenchmarkResult) -> float:
    return median(result.latency_ms)


def convolutions(model: nn.Module, *, quick: bool) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, layer in model.named_modules():
        able = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) and layer.in_channels > 1
        if able and (not quick or name.startswith("layer1.0")):
            yield name, layer


def factorize_by_parafac(layer: nn.Conv2d, rank: int) -> Factors:
    """Return the layers of cp_epc filled with the factors that tensorly finds."""
    compact = factorize(layer, "cp_epc", (rank,), fit=False)
    (k,) = grouped_kernel(layer)
    weights, (area, inside, out) = parafac(
        kernel_tensor(k).x.numpy(), rank, n_iter_max=PARAFAC_SWEEPS, tol=0, init="random", random_state=0
    )
    cp_chain.write_factors(compact, [[torch.from_numpy(factor) for factor in (area * weights, inside, out)]])
    copy_bias(compact[-1], layer)
    return compact


def measure_cp_factors(rows: Rows, recipe: Recipe, folder: Path, *, quick: bool) -> None:
    dense = recipe.model().eval()
    x, labels = fetch_samples(recipe.eval_data(), 500 if quick else None)
    train, _ = fetch_samples(recipe.train_data(), 1000, seed=0)
    models = {"cp_epc": copy.deepcopy(dense), "parafac": copy.deepcopy(dense)}
    for name, layer in convolutions(dense, quick=quick):
        (rank,) = rank_by_parameter_rate(layer, "cp_epc", PARAMETER_RATE)
        replace_module(models["cp_epc"], name, factorize(layer, "cp_epc", (rank,), name=name))
        replace_module(models["parafac"], name, factorize_by_parafac(layer, rank))
    scores: dict[str, float] = {}
    for name, model in models.items():
        reestimate_batchnorm(model, [take_samples(train, slice(i, i + 100)) for i in range(0, 1000, 100)])
        scores[name] = 100 * top1(forward(model.eval(), x)[0], labels)
        scores[f"{name} int8"] = 100 * top1(int8_outputs(model, recipe, train, x, folder / name)[0], labels)
    beside = {"dense": 100 * top1(forward(dense, x)[0], labels), **{name.replace(" ", "_"): found for name, found in scores.items()}}
    lost = {name: scores[name] - scores[f"{name} int8"] for name in models}
    rows.add("top-1 points that int8 static takes from CP factors, no fine-tuning", ours=lost["cp_epc"], peer=None, bound=1.0, **beside)
    left = {name: beside["dense"] - scores[f"{name} int8"] for name in models}
    rows.add("top-1 points lost in all, CP at the same MACs in int8 static", ours=left["cp_epc"], peer=left["parafac"], bound=1.0)


def int8_outputs(model: nn.Module, recipe: Recipe, calibration: Batch, x: Batch, folder: Path) -> Batch:
    """Convert a model to int8-static TFLite and return the outputs of the file for `x`."""
    folder.mkdir()
    write_program(to_program(model, recipe.example_inputs), folder / "program.pt2")
    save_calibration(take_samples(calibration, slice(CALIBRATION_SAMPLES)), folder / "calibration.safetensors")
    request = ConversionRequest(
        program=str(folder / "program.pt2"),
        output=str(folder / "model.tflite"),
        scheme="int8-static",
        calibration=str(folder / "calibration.safetensors"),
    )
    reply = run_converter("tflite", request)
    return run_artifact(folder / "model.tflite", reply.inputs, reply.outputs, x)[0]


def main() -> None:
    options, recipe = parse(__doc__), load_recipe(str(toolchains.example()))
    rows = Rows(options.write)
    with tempfile.TemporaryDirectory() as folder:
        measure_files(rows, recipe, Path(folder), quick=options.quick)
        measure_cp_factors(rows, recipe, Path(folder), quick=options.quick)
    rows.end()


if __name__ == "__main__":
    main()
