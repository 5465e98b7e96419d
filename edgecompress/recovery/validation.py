"""Validation: samples that no training sees, and how well a network does on them, which chooses the epoch that is kept.

The samples are held out of the training data, the same ones in every step of a run, because whatever chooses among networks flatters the
one that it chooses: accuracies on evaluation data stay honest when nothing was chosen by them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import count_items, fetch_pairs
from edgecompress.data.metrics import Metric, check_metric, measure_metric
from edgecompress.network.batches import Batch, Structure, run_model, take_samples
from edgecompress.network.outputs import Specs, divergence
from edgecompress.network.surgery import forward
from edgecompress.records.metrics import MetricSpec

HELD_OUT_FRACTION: Final = 0.05  # the divergence from the dense network tells epochs apart on few samples; training needs the others
MIN_HELD_OUT: Final = 50
MAX_HELD_OUT: Final = 1000  # takes seconds
MAX_FRACTION: Final = 0.2  # of a few samples, most are needed for training
TOO_FEW: Final = 8  # fewer held-out samples choose by chance
MAX_BYTES: Final = 256_000_000  # of the inputs and outputs that are kept in memory
SPLIT_SEED: Final = 0  # the same samples in all stages and steps, whatever the seed of the run: none of them is ever trained on


class ValidationScore(NamedTuple):
    """How well a network does on the validation samples: the headline of the metric, and the divergence from the dense network.

    The score is None where there is no metric, both are None where outputs are not finite.
    """

    score: float | None
    divergence: float | None


def split_indices(total: int, sample_bytes: int, most: int = MAX_HELD_OUT) -> tuple[list[int], list[int]]:
    """Return the indices of the samples to train on and of those to hold out; none are held out of too few.

    Args:
        sample_bytes: Of the inputs and outputs of one sample.
        most: Samples that are enough.
    """
    wanted = max(MIN_HELD_OUT, int(HELD_OUT_FRACTION * total))
    count = min(wanted, most, int(MAX_FRACTION * total), max(TOO_FEW, MAX_BYTES // max(1, sample_bytes)))
    if count < TOO_FEW:
        return list(range(total)), []
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    return sorted(order[count:]), order[:count]


class Validation:
    """Samples with the dense network's outputs, against which networks are measured, each one on the same tensors.

    Args:
        teacher: The dense network.
        indices: The samples within `data`.
        words: Which samples they are, e.g. "training samples that were held out".
        with_targets: False ignores targets, whatever they are.

    Attributes:
        targets: None where the samples have none, or they are ignored.
        wanted: The dense network's outputs.
        headline: Describes the first value of the metric; None where the divergence alone judges.
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: "Dataset[Any]",
        indices: Sequence[int],
        *,
        words: str,
        specs: Specs | None = None,
        example: Batch | None = None,
        with_targets: bool = False,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SPLIT_SEED)  # of random augmentations
            self.inputs, self.targets = fetch_pairs(data, indices, example=example, with_targets=with_targets)
        self.wanted = forward(teacher.eval(), self.inputs)
        self.samples, self.words, self.specs = len(indices), words, specs
        self.headline: MetricSpec | None = None

    def use_metric(self, metric: Metric, structure: Structure) -> None:
        """Judge by a metric of the targets first.

        Raises:
            ConfigError: The metric is faulty; see `check_metric`.
        """
        self.headline = check_metric(metric, self.wanted, self.targets, structure)[0]
        self.metric, self.structure = metric, structure

    def measure(self, model: nn.Module) -> ValidationScore:
        """Return the score of a network, which is left in eval mode."""
        outputs = forward(model.eval(), self.inputs)
        with torch.inference_mode():
            found = float(divergence(outputs, self.wanted, specs=self.specs).clamp_min(0))  # rounding makes that of equal outputs negative
        if not math.isfinite(found):
            return ValidationScore(None, None)
        if self.headline is None:
            return ValidationScore(None, found)
        return ValidationScore(measure_metric(self.metric, outputs, self.targets, self.structure)[self.headline.name], found)

    @property
    def criterion(self) -> str:
        """What the samples are judged by, in words."""
        metric = "" if self.headline is None else f"{self.headline.name}, then "
        return f"{metric}divergence from the dense network on {self.samples:,} {self.words}"


def hold_out(
    teacher: nn.Module,
    data: "Dataset[Any]",
    eval_data: "Dataset[Any] | None" = None,
    *,
    example: Batch,
    specs: Specs | None = None,
    with_targets: bool = False,
    most: int = MAX_HELD_OUT,
) -> tuple[list[int], Validation]:
    """Return the indices of the training samples that are left, and the validation samples.

    Where the training data are too few to hold any out, the validation samples are those of the evaluation data, or else the training
    samples themselves; `Validation.words` says so.
    """
    with torch.inference_mode():
        outputs = run_model(teacher.eval(), take_samples(example, slice(1)))
    total = count_items(data)
    size = sum(x.nbytes for x in (*take_samples(example, slice(1)), *outputs))
    indices, held_out = split_indices(total, size, most)
    make = partial(Validation, teacher, specs=specs, example=example, with_targets=with_targets)
    if held_out:
        return indices, make(data, held_out, words="training samples that were held out")
    few = f"{total} training samples are too few to hold any out"
    available = count_items(eval_data) if eval_data is not None else 0
    if eval_data is not None and available:
        return indices, make(eval_data, range(min(available, most)), words=f"evaluation samples, since {few}")
    return indices, make(data, indices, words=f"samples that are trained on, since {few}")
