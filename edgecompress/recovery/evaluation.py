"""Evaluation of networks on labelled data, and the metric that judges them where the user gives none."""

import math
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import Targets, check_labels, count_items, describe_dataset, fetch_pairs, is_class_index
from edgecompress.data.builtin_metrics import METRICS
from edgecompress.data.metrics import Metric, choose_metric, describe_metric, evaluate_metric
from edgecompress.network import batches
from edgecompress.network.batches import Batch, structure_of
from edgecompress.network.output_kinds import KINDS
from edgecompress.network.outputs import Specs, divergence, scores_of, top1
from edgecompress.network.surgery import forward
from edgecompress.progress import Track, track_silently
from edgecompress.records.metrics import TOP1, MetricSpec
from edgecompress.recovery.schedule import chunks

EVAL_BATCH: Final = 250  # without gradients, so many samples take no more memory than a training batch
MIN_EVAL_BATCH: Final = 4  # statistics of a batch need several samples
MAX_EVAL_BYTES: Final = 16_000_000  # of inputs: the feature maps of many networks are 20 times as large, of which a few live at once
MAX_COMPARED: Final = 1000  # evaluation samples that are compared with the dense network's outputs where there is no metric
DIVERGENCE: Final = MetricSpec(name="divergence", higher_is_better=False, is_accuracy=False)


class Evaluator:
    """Measures networks on evaluation data: by the user's metric, by one for their labels, or by the divergence from the dense network.

    Without data nothing is measured.

    Args:
        metric: The user's; None takes the one for labels.

    Attributes:
        dense: Values of the dense network by name, the first one being the headline.
        headline: Describes it; None where nothing is measured.
    """

    def __init__(
        self,
        dense: nn.Module,
        data: "Dataset[Any] | None",
        *,
        metric: Metric | None,
        specs: Specs,
        example: Batch,
        track: Track = track_silently,
    ) -> None:
        self.data, self.metric, self.specs, self.example, self.track = data, metric, specs, example, track
        if data is not None:
            self.structure, self.example_outputs = structure_of(dense, example), forward(dense, example)
            self.metric = metric if metric is not None else choose_metric(specs, fetch_target(data, example, specs))
            if self.metric is None:
                self.inputs, _ = fetch_pairs(data, MAX_COMPARED, example=example, with_targets=False)
                self.wanted = forward(dense, self.inputs)
        self.dense = self.measure(dense)
        self.headline: MetricSpec | None = None
        if self.dense:
            self.headline = describe_metric(self.metric, self.dense)[0] if self.metric is not None else DIVERGENCE

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the values of a network, which is left in eval mode."""
        if self.data is None:
            return {}
        if self.metric is None:
            with torch.inference_mode():
                loss = divergence(forward(model.eval(), self.inputs), self.wanted, specs=self.specs)
                apart = float(loss.clamp_min(0))  # rounding makes that of equal outputs negative
            return {DIVERGENCE.name: apart} if math.isfinite(apart) else {}
        if is_builtin(self.metric) and self.metric.place == TOP1.name and scores_of(self.example_outputs, self.specs) is not None:
            found = measure_top1(model, self.data, self.track, example_inputs=self.example, specs=self.specs)
            return {} if found is None else {TOP1.name: found}
        with torch.inference_mode():
            run = partial(forward, model.eval())
            return evaluate_metric(self.metric, run, self.data, structure=self.structure, example=self.example)


def choose_eval_batch(example: Batch) -> int:
    """Return how many samples to run at once without gradients, so that memory has a bound at any size of the inputs."""
    size = sum(x[0].numel() * x.element_size() for x in example)
    return max(MIN_EVAL_BATCH, min(EVAL_BATCH, MAX_EVAL_BYTES // max(1, size)))


@torch.inference_mode()
def measure_top1(
    model: nn.Module,
    data: "Dataset[Any]",
    track: Track = track_silently,
    *,
    example_inputs: Batch | None = None,
    specs: Specs | None = None,
) -> float | None:
    """Return the top-1 accuracy of `model` on labelled data as a fraction; None without labels, or without one output of class scores."""
    model.eval()
    right = total = 0
    order = chunks(range(count_items(data)), choose_eval_batch(example_inputs or ()))
    for indices in track(order, "evaluating", len(order)):
        x, targets = fetch_pairs(data, indices, example=example_inputs)
        scores = scores_of(batches.run_model(model, x), specs)
        if scores is None or not is_class_index(targets):
            return None
        labels = check_labels(targets, describe_dataset(data), classes=scores.shape[1])
        right += round(top1(scores, labels) * len(scores))
        total += len(scores)
    return right / total if total else None


def is_builtin(metric: Metric) -> bool:
    """Whether a metric is one for labels, and not the user's."""
    return metric.given in METRICS.values()


def fetch_target(data: "Dataset[Any]", example: Batch, specs: Specs) -> Targets | None:
    """Return the target of a dataset's first sample, as a batch of one; None where no output can have labels, whatever the targets are."""
    if not any(KINDS[spec.kind].has_classes for spec in specs):
        return None
    return fetch_pairs(data, [0], example=example)[1]
