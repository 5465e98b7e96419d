"""Labelled data for an artifact: find them, check that they fit its inputs and classes, and number their classes as the artifact does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgecompress import data as datasets
from edgecompress.data.recipe import load_recipe, recipe_at_resolution
from edgecompress.data.user_functions import call_user_function
from edgecompress.devices.manifests import read_manifest
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.records import Artifact, TensorSpec
from edgecompress.runs import is_run, read_run
from edgecompress.targets import SUFFIXES

INDEX_DTYPES: Final = ("int64", "int32")
Data = Path | str | Dataset[Any] | None


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """An artifact with the data to score it on.

    Attributes:
        indices: The samples to use.
        example: One input of the model in its own layout, on the device "meta".
        scores: The index of the output that holds the scores of `classes`.
        class_map: The artifact's class of each class of the data; () where both are numbered alike.
    """

    path: Path
    manifest: Artifact
    samples: "Dataset[Any]"
    indices: tuple[int, ...]
    example: Batch
    scores: int
    classes: int
    class_map: tuple[int, ...]
    notes: tuple[str, ...]


def prepare_job(path: Path, data: Data, samples: int) -> EvaluationJob:
    """Return the job of scoring an artifact on `data`, checked as far as possible without a device.

    Raises:
        ConfigError: No manifest or class scores, no data or labels, or data that do not fit the artifact.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise ConfigError(f"{path}: no such artifact; it must be a file whose name ends in {', '.join(SUFFIXES)}")
    manifest = read_manifest(path)
    if manifest is None:
        raise ConfigError(
            f"{path}: {path.name}.json is not beside it, so its inputs and classes are unknown; copy both, or export it again"
        )
    shapes = [output.shape for output in manifest.outputs]
    vectors = [i for i, shape in enumerate(shapes) if len(shape) == 2 and shape[1] > 1]
    if len(vectors) != 1:
        kind = f"may be {len(vectors)} sets of" if vectors else "are no"
        raise ConfigError(f"{path}: its outputs {shapes} {kind} class scores (1, classes); evaluate it with a script of your own")
    classes = shapes[vectors[0]][1]
    example = tuple(_make_example(spec) for spec in manifest.inputs)
    dataset = _load_dataset(path, manifest, data, example)
    if not hasattr(dataset, "__len__"):
        raise ConfigError(f"{datasets.describe_dataset(dataset)}: has no length; give a map-style torch Dataset")
    indices = _choose_samples(len(dataset), samples)
    class_map = _map_classes(path, manifest, dataset)
    notes = tuple(_list_notes(manifest, dataset))
    job = EvaluationJob(path, manifest, dataset, indices, example, vectors[0], classes, class_map, notes)
    fetch_batch(job, job.indices[:1])
    return job


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


def _load_dataset(path: Path, manifest: Artifact, data: Data, example: Batch) -> "Dataset[Any]":
    if data is None:
        return _load_run_dataset(path, manifest, example)
    if not isinstance(data, (str, Path)):
        return data
    file = Path(data).expanduser()
    if file.suffix == ".py" or (file / "recipe.py").is_file():
        return _load_recipe_dataset(str(file))
    return datasets.load_data(file, "eval", preprocessing=manifest.preprocessing, example=example)


def _load_run_dataset(path: Path, manifest: Artifact, example: Batch) -> "Dataset[Any]":
    """Return the data on which the run of an artifact scored its artifacts."""
    folder = path.resolve().parent.parent
    if not is_run(folder):
        raise ConfigError(f"{path}: lies in no run folder, so there is no recipe to take data from; give --data, or a recipe as --data")
    run = read_run(folder)
    if run.options.data:
        return datasets.load_data(Path(run.options.data), "eval", preprocessing=manifest.preprocessing, example=example)
    if run.recipe == "python":
        raise ConfigError(f"{folder}: was made from Python, so it has no recipe to take data from; give --data")
    return _load_recipe_dataset(run.recipe, run.options.resolution)


def _load_recipe_dataset(source: str, resolution: int = 0) -> "Dataset[Any]":
    recipe = recipe_at_resolution(load_recipe(source), resolution)
    if recipe.eval_data is None:
        raise ConfigError(f"{source}: has no eval_data(); add it, or give --data")
    dataset: Dataset[Any] = call_user_function(recipe.eval_data, f"{source}: eval_data()")
    return dataset


def _map_classes(path: Path, manifest: Artifact, dataset: "Dataset[Any]") -> tuple[int, ...]:
    """Return the artifact's class of each class of the data: class folders are in alphabetical order, the artifact's labels may not be."""
    theirs, ours = tuple(getattr(dataset, "class_names", ())), manifest.labels
    if not theirs or not ours or theirs == ours[: len(theirs)]:
        return ()
    known = [name for name in theirs if name in ours]
    if not known:
        return ()  # other names for the same classes, which `_list_notes` reports
    if unknown := sorted(set(theirs) - set(ours)):
        raise ConfigError(f"{path}: class {unknown[0]!r} of the data is not among its labels ({', '.join(ours[:12])}); name it as they do")
    return tuple(ours.index(name) for name in theirs)


def _list_notes(manifest: Artifact, dataset: "Dataset[Any]") -> Iterator[str]:
    theirs = tuple(getattr(dataset, "class_names", ()))
    if theirs and manifest.labels and not set(theirs) & set(manifest.labels):
        yield "the classes of the data have other names than the artifact's labels; they were taken in the order of the data"
    if manifest.preprocessing is None and hasattr(getattr(dataset, "inputs", None), "preprocessing"):
        yield "the manifest knows no preprocessing; pixels were scaled to [0, 1]"


def fetch_batch(job: EvaluationJob, indices: Sequence[int]) -> tuple[Batch, Tensor]:
    """Return the samples of `indices`: inputs, each `(n, …)`, in the model's layout and labels `(n,)` in the artifact's numbering.

    Raises:
        ConfigError: No labels, a wrong shape, or a label that is not a class of the artifact.
    """
    known = len(job.class_map) or job.classes
    x, y = datasets.fetch_samples(job.samples, list(indices), example=job.example, classes=known)
    if y is None:
        raise ConfigError(f"{datasets.describe_dataset(job.samples)}: no labels; give data with a class index for each input")
    return x, torch.tensor(job.class_map)[y] if job.class_map else y
