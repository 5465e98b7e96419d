"""The commands that build: one step each, with whatever is missing before it."""

from collections.abc import Callable
from typing import Any, Final

from rich.table import Table

from edgecompress.cli import parameters as p
from edgecompress.cli import tables
from edgecompress.cli.session import console, pipeline
from edgecompress.records import Record, to_json
from edgecompress.targets import TARGETS


def show(record: Record, render: Callable[[Any], Table], *, json: bool) -> None:
    """Print a record for a person, or for a program."""
    if json:
        print(to_json(record).decode(), end="")  # noqa: T201
    else:
        console().print(render(record))


def analyze(target: p.Target = None, run: p.RunFolder = None, weights: p.Weights = None, data: p.Data = None, json: p.Json = False) -> None:
    """Count and time every layer.

    Example: edgecompress analyze examples/resnet20_fashion_mnist
    """
    with pipeline(target, run, {"weights": weights, "data": data}) as steps:
        record = steps.analyze()
    show(record, tables.stats, json=json)


def plan(
    target: p.Target = None,
    run: p.RunFolder = None,
    macs_ratio: p.MacsRatio = None,
    method: p.Method = None,
    layer: p.Layer = None,
    data_aware: p.DataAware = None,
    min_agreement: p.MinAgreement = None,
    weights: p.Weights = None,
    data: p.Data = None,
    seed: p.Seed = None,
    json: p.Json = False,
) -> None:
    """Choose a form and rank for each layer, and say why.

    Example: edgecompress plan runs/resnet20_fashion_mnist --macs-ratio 0.5
    """
    given = {
        "macs_ratio": macs_ratio,
        "method": method,
        "layer": layer,
        "data_aware": data_aware,
        "min_agreement": min_agreement,
        "weights": weights,
        "data": data,
        "seed": seed,
    }
    with pipeline(target, run, given) as steps:
        record = steps.plan()
    show(record, tables.plan, json=json)


def decompose(target: p.Target = None, run: p.RunFolder = None, json: p.Json = False) -> None:
    """Replace the planned layers by their factors.

    Example: edgecompress decompose runs/resnet20_fashion_mnist
    """
    with pipeline(target, run, {}) as steps:
        record = steps.decompose()
    show(record, tables.decomposed, json=json)


def finetune(
    target: p.Target = None,
    run: p.RunFolder = None,
    epochs: p.Epochs = None,
    epoch_samples: p.EpochSamples = None,
    batch_size: p.BatchSize = None,
    optimizer: p.Optimizer = None,
    learning_rate: p.LearningRate = None,
    data: p.Data = None,
    seed: p.Seed = None,
    json: p.Json = False,
) -> None:
    """Recover accuracy: BatchNorm re-estimation, then distillation from the dense model.

    Example: edgecompress finetune runs/resnet20_fashion_mnist --epochs 10
    """
    given = {
        "epochs": epochs,
        "epoch_samples": epoch_samples,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "data": data,
        "seed": seed,
    }
    with pipeline(target, run, given) as steps:
        record = steps.finetune()
    show(record, tables.finetuned, json=json)


def quantize(
    target: p.Target = None,
    run: p.RunFolder = None,
    scheme: p.Scheme = None,
    samples: p.CalibrationSamples = None,
    data: p.Data = None,
    json: p.Json = False,
) -> None:
    """Choose calibration inputs and show how well each weight fits int8.

    Example: edgecompress quantize runs/resnet20_fashion_mnist --samples 200
    """
    with pipeline(target, run, {"scheme": scheme, "calibration_samples": samples, "data": data}) as steps:
        record = steps.quantize()
    show(record, tables.quantized, json=json)


def export(
    recipe: p.Target = None,
    run: p.RunFolder = None,
    target: p.ExportTarget = None,
    format: p.Format = None,  # noqa: A002 - the option's name
    scheme: p.Scheme = None,
    macs_ratio: p.MacsRatio = None,
    method: p.Method = None,
    layer: p.Layer = None,
    data_aware: p.DataAware = None,
    min_agreement: p.MinAgreement = None,
    epochs: p.Epochs = None,
    epoch_samples: p.EpochSamples = None,
    samples: p.CalibrationSamples = None,
    tflite_route: p.Route = None,
    layout: p.Layout = None,
    io: p.InputsAs = None,
    verify_samples: p.VerifySamples = None,
    max_rel: p.MaxRel = None,
    min_int8_agreement: p.MinInt8 = None,
    convert_timeout_s: p.ConvertTimeout = None,
    convert_memory_gb: p.ConvertMemory = None,
    bytecode_version: p.Bytecode = None,
    also_python: p.AlsoPython = None,
    weights: p.Weights = None,
    data: p.Data = None,
    threads: p.Threads = None,
    seed: p.Seed = None,
    json: p.Json = False,
) -> None:
    """Run every missing step and publish verified artifacts, measured here.

    Example: edgecompress export --target android
    """
    given: dict[str, Any] = {
        "target": target,
        "format": format,
        "scheme": scheme,
        "macs_ratio": macs_ratio,
        "method": method,
        "layer": layer,
        "data_aware": data_aware,
        "min_agreement": min_agreement,
        "epochs": epochs,
        "epoch_samples": epoch_samples,
        "calibration_samples": samples,
        "tflite_route": tflite_route,
        "layout": layout,
        "io": io,
        "verify_samples": verify_samples,
        "max_rel": max_rel,
        "min_int8_agreement": min_int8_agreement,
        "convert_timeout_s": convert_timeout_s,
        "convert_memory_gb": convert_memory_gb,
        "bytecode_version": bytecode_version,
        "also_python": also_python,
        "weights": weights,
        "data": data,
        "threads": threads,
        "seed": seed,
    }
    with pipeline(recipe, run, given) as steps:
        record = steps.export()
    show(record, lambda made: tables.artifacts(made.artifacts, steps.measured), json=json)
    folder = steps.run.folder
    notes = console(stderr=True)
    for refused in record.refused:
        notes.print(f"refused: {refused.path}: {refused.reason}")
    notes.print(f"next: edgecompress bench {folder} --device {TARGETS[steps.options.target].device}")
    notes.print(f"      open {folder / 'report.html'}")
    if steps.failures:
        raise steps.failures[0]


COMMANDS: Final = (analyze, plan, decompose, finetune, quantize, export)
