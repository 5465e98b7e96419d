"""The probe: a few runs of the dense network on its example and on samples of its data, and what they show, within seconds."""

from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from edgecompress import data as datasets
from edgecompress.data.samples import choose_indices
from edgecompress.errors import EdgeCompressError
from edgecompress.network.batches import Batch, take_samples
from edgecompress.network.checks import find_all
from edgecompress.network.exported import example_outputs
from edgecompress.network.outputs import scores_of
from edgecompress.network.probe import Probe, SplitSamples
from edgecompress.pipeline.context import RunContext
from edgecompress.records import CheckResult, Finding

SPLIT_NAMES: Final = {"train": "the training data", "eval": "the evaluation data", "calibration": "the calibration data"}
MAX_SAMPLES: Final = 8  # show the range of the inputs; images of many megapixels are read in a second


def make_check(context: RunContext) -> CheckResult:
    """Probe the dense network and its data."""
    recipe = context.recipe
    classes = _count_classes(context)
    data = tuple(_fetch_split(context, split, classes) for split in SPLIT_NAMES if context.data.has_split(split))
    pair = next((take_samples(split.inputs, slice(2)) for split in data if split.inputs and len(split.inputs[0]) > 1), None)
    probe = Probe(
        context.dense,
        recipe.example_inputs,
        rows=recipe.example_rows,
        pair=pair,
        export=lambda: context.network.program,
        read_outputs=lambda: context.output_specs,
        judge=context.check_judging,
        data=data,
        is_trained=context.data.can_train,
    )
    return _add_notes(find_all(probe, recipe.name), context)


def _add_notes(found: CheckResult, context: RunContext) -> CheckResult:
    """Return the findings with how the checkpoint and the data were read."""
    checkpoint = ("checkpoint",) if context.options.weights else ()
    notes = {"checkpoint": context.network.notes, "data": context.data.notes}
    findings = tuple(Finding(kind=kind, severity="note", text=text) for kind, texts in notes.items() for text in texts)
    return msgspec.structs.replace(found, checks=(*checkpoint, *found.checks), findings=(*findings, *found.findings))


def _fetch_split(context: RunContext, split: str, classes: int) -> SplitSamples:
    """Return a few samples from everywhere in a split: the first two are as far from each other as they can be."""
    name = SPLIT_NAMES[split]
    try:
        dataset = context.data.dataset(split)
        n = datasets.count_items(dataset) if hasattr(dataset, "__len__") else 0
        rows = list(dict.fromkeys([0, n - 1, *range(0, n, -(-n // MAX_SAMPLES) or 1)]))[:MAX_SAMPLES] if n else None
        inputs, items = datasets.fetch_items(
            dataset, choose_indices(dataset, rows, None), example=context.recipe.example_inputs, with_targets=split != "calibration"
        )
    except EdgeCompressError as error:
        return SplitSamples(name, error=str(error))
    return SplitSamples(name, inputs, labels=_read_labels(items), classes=classes)


def _read_labels(items: list[Any]) -> Tensor | None:
    """Return class indices `(n,)`; None where targets are something else."""
    try:
        targets = datasets.collate_targets(items, "targets") if items else None
    except EdgeCompressError:
        return None
    return targets.reshape(-1).long() if isinstance(targets, Tensor) and datasets.is_class_index(targets) else None


def _count_classes(context: RunContext) -> int:
    """Return the number of classes of the output whose labels are class indices; 0 where none is, or the recipe judges by itself."""
    if context.recipe.metric is not None or context.recipe.loss is not None:
        return 0
    try:
        outputs: Batch = example_outputs(context.network.program)
        specs = context.output_specs
    except (EdgeCompressError, RuntimeError):
        return 0
    scores = scores_of(outputs, specs)
    if scores is None and len(outputs) == 1 and specs[0].kind == "values" and context.recipe.outputs is None:
        scores = scores_of(outputs)  # labels out of range are no reason to take class scores for values
    return 0 if scores is None or not torch.is_tensor(scores) else int(scores.shape[1])
