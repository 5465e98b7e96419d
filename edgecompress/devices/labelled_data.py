"""Data with targets for an artifact: find them and the metric, check that they fit, and number their classes as the artifact does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress import data as datasets
from edgecompress.data.classes import number_classes
from edgecompress.data.dataloaders import take_dataset
from edgecompress.data.metrics import Metric, choose_metric
from edgecompress.data.recipe import Recipe, load_recipe, recipe_at_resolution
from edgecompress.data.targets import Targets, check_labels
from edgecompress.devices.manifests import read_manifest
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import call_user_function
from edgecompress.network.batches import Batch, Structure, structure_of, structure_of_names
from edgecompress.network.checks import check_runs
from edgecompress.network.output_kinds import KINDS, class_axis, guess_specs
from edgecompress.network.surgery import unwrap_model
from edgecompress.records import Artifact, OutputSpec, TensorSpec
from edgecompress.runs import is_run, read_run
from edgecompress.targets import SUFFIXES

INDEX_DTYPES: Final = ("int64", "int32")
TRIED_SAMPLES: Final = 64  # show what targets are before a device is asked; choosing a metric by fewer may miss the higher classes
Data = Path | str | Dataset[Any] | None


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """An artifact with the data to score it on.

    Attributes:
        indices: The samples to use.
        example: One input of the model in its own layout, on the device "meta".
        scores: The index of the output that holds scores of `classes` which the targets name; None, and 0 classes, where no output does.
        metric: The user's metric, or mean IoU of class maps; None leaves it to top-1.
        structure: That of the outputs which the metric takes.
    """

    path: Path
    manifest: Artifact
    samples: "Dataset[Any]"
    indices: tuple[int, ...]
    example: Batch
    scores: int | None
    classes: int
    metric: Metric | None
    structure: Structure
    notes: tuple[str, ...]


def prepare_job(path: Path, data: Data, samples: int, *, metric: Metric | None = None) -> EvaluationJob:
    """Return the job of scoring an artifact on `data`, checked as far as possible without a device.

    Args:
        metric: Takes the place of the recipe's.

    Raises:
        ConfigError: No manifest, no data or targets, neither class scores nor a metric, or data that do not fit the artifact.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise ConfigError(f"{path}: no such artifact; it must be a file whose name ends in {', '.join(SUFFIXES)}")
    manifest = read_manifest(path)
    if manifest is None:
        raise ConfigError(
            f"{path}: {path.name}.json is not beside it, so its inputs and classes are unknown; copy both, or export it again"
        )
    example = tuple(_make_example(spec) for spec in manifest.inputs)
    dataset, recipe = _load_dataset(path, manifest, data, example)
    dataset = number_classes(take_dataset(dataset, "the evaluation data"), manifest.labels, str(path))
    if not hasattr(dataset, "__len__"):
        raise ConfigError(f"{datasets.describe_dataset(dataset)}: has no length; give a map-style torch Dataset")
    indices = _choose_samples(datasets.count_items(dataset), samples)
    _, targets = datasets.fetch_pairs(dataset, indices[:TRIED_SAMPLES], example=example)
    specs = _read_specs(manifest)
    usual = choose_metric(specs, targets)
    metric = metric or (recipe.metric if recipe else None) or usual
    if metric is None or targets is None:
        raise _explain_no_metric(path, manifest, dataset, specs, targets, metric)
    scores = _find_scores(usual, manifest)
    job = EvaluationJob(
        path=path,
        manifest=manifest,
        samples=dataset,
        indices=indices,
        example=example,
        scores=scores,
        classes=0 if scores is None else manifest.outputs[scores].shape[class_axis(specs[scores])],
        metric=None if scores is not None and metric is usual else metric,
        structure=_find_structure(specs, recipe) if metric.output is None else structure_of_names([spec.name for spec in specs]),
        notes=tuple(_list_notes(manifest, dataset)),
    )
    fetch_batch(job, job.indices[:TRIED_SAMPLES])
    return job


def _read_specs(manifest: Artifact) -> tuple[OutputSpec, ...]:
    """Return the kinds of an artifact's outputs; those of a manifest from before kinds are guessed from the shapes."""
    return manifest.kinds or guess_specs([torch.empty(output.shape, device="meta") for output in manifest.outputs])


def _find_scores(usual: Metric | None, manifest: Artifact) -> int | None:
    """Return the index of the output whose scores top-1 compares; None for another metric, and for an output that holds classes already."""
    if usual is None or usual.output is None or usual.place != "top-1":
        return None
    return None if manifest.outputs[usual.output].dtype in INDEX_DTYPES else usual.output


def _find_structure(specs: tuple[OutputSpec, ...], recipe: Recipe | None) -> Structure:
    """Return the structure in which the recipe's network returns its outputs; without a recipe that which their names tell."""
    if recipe is None:
        return structure_of_names([spec.name for spec in specs])
    network: nn.Module = unwrap_model(call_user_function(recipe.model, "model()", recipe.source))
    check_runs(network, recipe.example_inputs, recipe.example_rows, subject=recipe.source)
    return structure_of(network, recipe.example_inputs)


def _explain_no_metric(
    path: Path, manifest: Artifact, dataset: "Dataset[Any]", specs: tuple[OutputSpec, ...], targets: Targets | None, metric: Metric | None
) -> ConfigError:
    """Return the error for data on which an artifact cannot be scored."""
    source = datasets.describe_dataset(dataset)
    classes = [spec for spec in specs if KINDS[spec.kind].has_classes]
    if metric is None and len(classes) != 1:
        kind = f"may be {len(classes)} sets of" if classes else "are no"
        shapes = [output.shape for output in manifest.outputs]
        return ConfigError(
            f"{path}: its outputs {shapes} {kind} class scores; define metric(outputs, targets) in the recipe that is the data"
        )
    if targets is None:
        wanted = "a class index for each input" if metric is None else f"the targets that {metric.place} takes"
        return ConfigError(f"{source}: no labels; give data with {wanted}")
    try:
        check_labels(targets, source)
    except ConfigError as error:
        return error
    return ConfigError(f"{source}: its labels are not those of {path.name}; give data with a class index for each answer")


def _choose_samples(total: int, samples: int) -> tuple[int, ...]:
    """Return all indices, or a random choice that is the same each time; the first ones would not do, since data may be sorted by class."""
    if samples >= total:
        return tuple(range(total))
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:samples]
    return tuple(sorted(chosen.tolist()))


def _make_example(spec: TensorSpec) -> Tensor:
    """Return one input in the layout of the model and the data: channels first, and floats where the artifact takes quantized integers."""
    shape = (spec.shape[0], spec.shape[3], *spec.shape[1:3]) if spec.layout == "NHWC" else spec.shape
    indices = spec.scale is None and spec.dtype in INDEX_DTYPES
    return torch.empty(shape, dtype=torch.int64 if indices else torch.float32, device="meta")


def _load_dataset(path: Path, manifest: Artifact, data: Data, example: Batch) -> "tuple[Dataset[Any], Recipe | None]":
    """Return the data, and the recipe where they are a recipe's."""
    if data is None:
        return _load_run_dataset(path, manifest, example)
    if not isinstance(data, (str, Path)):
        return data, None
    file = Path(data).expanduser()
    if file.suffix == ".py" or (file / "recipe.py").is_file():
        return _load_recipe_dataset(str(file))
    return datasets.load_data(file, "eval", preprocessing=manifest.preprocessing, example=example), None


def _load_run_dataset(path: Path, manifest: Artifact, example: Batch) -> "tuple[Dataset[Any], Recipe | None]":
    """Return the data on which the run of an artifact scored its artifacts, and its recipe."""
    folder = path.resolve().parent.parent
    if not is_run(folder):
        raise ConfigError(f"{path}: lies in no run folder, so there is no recipe to take data from; give --data, or a recipe as --data")
    run = read_run(folder)
    if run.options.data:
        return datasets.load_data(Path(run.options.data), "eval", preprocessing=manifest.preprocessing, example=example), None
    if run.recipe == "python":
        raise ConfigError(f"{folder}: was made from Python, so it has no recipe to take data from; give --data")
    return _load_recipe_dataset(run.recipe, run.options.resolution)


def _load_recipe_dataset(source: str, resolution: int = 0) -> "tuple[Dataset[Any], Recipe]":
    recipe = recipe_at_resolution(load_recipe(source), resolution)
    if recipe.eval_data is None:
        raise ConfigError(f"{source}: has no eval_data(); add it, or give --data")
    dataset = call_user_function(recipe.eval_data, "eval_data()", source)
    datasets.remember_function(dataset, "eval_data")
    return dataset, recipe


def _list_notes(manifest: Artifact, dataset: "Dataset[Any]") -> Iterator[str]:
    yield from getattr(dataset, "notes", ())
    if manifest.preprocessing is None and hasattr(getattr(dataset, "inputs", None), "preprocessing"):
        yield "the manifest knows no preprocessing; pixels were scaled to [0, 1]"


def fetch_batch(job: EvaluationJob, indices: Sequence[int]) -> tuple[Batch, list[Any], Tensor | None]:
    """Return the samples of `indices`: inputs, each `(n, …)`, in the model's layout, a target for each, and labels `(n,)`.

    Labels are in the artifact's numbering; None where no output holds the scores of classes that the targets name.

    Raises:
        ConfigError: A sample without a target, a wrong shape, or a label that is not a class of the artifact.
    """
    x, targets = datasets.fetch_items(job.samples, indices, example=job.example)
    source = datasets.describe_dataset(job.samples)
    if len(targets) != len(indices):
        raise ConfigError(f"{source}: {len(indices)} inputs but {len(targets)} labels; give every input one")
    if job.scores is None:
        return x, targets, None
    return x, targets, check_labels(datasets.collate_targets(targets, source), source, classes=job.classes)
