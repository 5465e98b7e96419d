"""Fine-tuning: re-estimate BatchNorm statistics, then distil from the dense network. Resumable after every epoch, deterministic by seed."""

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import Samples, describe_dataset, fetch_samples
from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import has_batchnorm, record_statistics, reestimate_batchnorm
from edgecompress.network.outputs import is_scores, scores_of, top1
from edgecompress.network.surgery import is_decomposed, set_memory_format
from edgecompress.network.threads import use_threads
from edgecompress.progress import Track, track_silently
from edgecompress.records import Epoch, FinetuneResult, Record
from edgecompress.recovery.loop import TrainingTask, run_epochs
from edgecompress.recovery.schedule import chunks, epoch_seed, shuffled_batches

BATCHNORM_SAMPLES: Final = 2048  # bounds the time of a pass; statistics of more samples hardly differ
EVAL_BATCH: Final = 250  # without gradients, so many samples take no more memory than a training batch
USUAL_RATE: Final = {"sgd": 0.01, "adamw": 1e-3}  # usual for networks that have been trained before
NO_DATA: Final = Samples(torch.empty(0), None, source="no data")


class FinetuneOptions(Record, frozen=True, kw_only=True):
    """How to fine-tune.

    Attributes:
        samples: Training samples per epoch; from a larger set each epoch draws others.
        learning_rate: Peak of a cosine schedule with a short warm-up; 0 takes the optimizer's usual one.
        distill: Weight of the distillation loss; the rest is cross-entropy with the labels.
        precision: Number format of the forward and backward pass; "auto" is bf16 where the processor multiplies in it, otherwise fp32.
            Weights are always fp32.
        threads: Threads that torch uses; 0 for its own number. A seed gives the same weights for the same number of threads.
    """

    epochs: int = 8
    samples: int = 10_000
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.0
    weight_decay: float = 5e-4
    temperature: float = 4.0
    distill: float = 0.9
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: int = 0
    seed: int = 0


def finetune(
    model: nn.Module,
    train_data: "Dataset[Any] | None",
    *,
    teacher: nn.Module,
    example_inputs: Batch | None = None,
    eval_data: "Dataset[Any] | None" = None,
    options: FinetuneOptions | None = None,
    checkpoint_path: Path | None = None,
    track: Track = track_silently,
) -> tuple[nn.Module, FinetuneResult]:
    """Return a fine-tuned copy of `model`, and the record of losses and accuracies.

    Args:
        model: The decomposed network; stays unchanged.
        train_data: Items as `edgecompress.data.recipe` describes them; None trains nothing. Without labels, only the teacher teaches.
        teacher: The dense network.
        example_inputs: One sample of each input; by default the inputs of the data's first sample.
        eval_data: Labelled data for the accuracies; without it they are None.
        checkpoint_path: Written after each epoch; an existing checkpoint of the same start and options is continued.

    Raises:
        ConfigError: Options are out of range, data are missing, or the loss became NaN.
    """
    options = options or FinetuneOptions()
    _check_options(options)
    data = NO_DATA if train_data is None else train_data
    repairs = has_batchnorm(model) and is_decomposed(model)
    if (options.epochs > 0 or repairs) and len(data) < 2:  # type: ignore[arg-type]
        raise ConfigError("fine-tuning: fewer than two training samples; give train_data() or --data")
    # Channels last: CPUs' convolution kernels are faster in it; shapes and results are the same.
    model = set_memory_format(copy.deepcopy(model), torch.channels_last)
    teacher = set_memory_format(copy.deepcopy(teacher), torch.channels_last).eval()
    task = FinetuneTask(model, teacher, data, eval_data, example_inputs, options, repairs=repairs, track=track)
    dense_top1 = task.measure_accuracy(teacher)
    with use_threads(options.threads):
        epochs = run_epochs(task, data, example=example_inputs, options=options, checkpoint_path=checkpoint_path, track=track)
    return set_memory_format(model, torch.contiguous_format).eval(), FinetuneResult(
        dense_top1=dense_top1,
        before_top1=epochs[0].top1,
        top1=epochs[-1].top1,
        epochs=tuple(epochs),
        train_samples=len(data),  # type: ignore[arg-type]
        eval_samples=len(eval_data) if eval_data is not None else 0,  # type: ignore[arg-type]
        data=describe_dataset(data),
        seed=options.seed,
    )


class FinetuneTask(TrainingTask):
    """Distillation of the dense network into the decomposed one, with BatchNorm statistics re-estimated before and after.

    Args:
        repairs: Whether BatchNorm statistics are re-estimated, because layers were replaced.
    """

    name = "fine-tuning"
    title = "epoch"
    remedy = "lower --learning-rate"

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        data: "Dataset[Any]",
        eval_data: "Dataset[Any] | None",
        example: Batch | None,
        options: FinetuneOptions,
        *,
        repairs: bool,
        track: Track,
    ) -> None:
        self.model, self.teacher, self.data, self.eval_data, self.example = model, teacher, data, eval_data, example
        self.options, self.repairs, self.track = options, repairs, track
        self.optimizer = _make_optimizer(model, options)
        self.peak_rate = options.learning_rate or USUAL_RATE[options.optimizer]
        self.low_precision = options.precision == "bf16" or (options.precision == "auto" and has_fast_bf16())

    def evaluate_start(self) -> list[Epoch]:
        started = time.perf_counter()
        torch.manual_seed(epoch_seed(self.options.seed, 0))
        if self.repairs:
            statistics = record_statistics(self.teacher, self._draw_inputs())
            torch.manual_seed(epoch_seed(self.options.seed, 0))  # the same samples
            reestimate_batchnorm(self.model, self._draw_inputs(), since=statistics)
        score = self.measure_accuracy(self.model)
        return [Epoch(epoch=0, loss=0.0, top1=score, learning_rate=0.0, seconds=time.perf_counter() - started)]

    def start_epoch(self) -> int | None:
        outputs = _example_outputs(self.teacher, self.data, self.example)
        self.clips_gradients = not all(is_scores(y) for y in outputs)
        self.model.train()
        return _count_classes(outputs)

    def compute_outputs(self, x: Batch) -> tuple[Batch, Batch]:
        x = tuple(part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part for part in x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            with torch.no_grad():
                wanted = _to_float32(batches.run_model(self.teacher, x))
            return _to_float32(batches.run_model(self.model, x)), wanted

    def finish_epoch(self, number: int) -> float | None:
        if number == self.options.epochs and self.repairs:  # running averages follow the last few batches; the final statistics must not
            reestimate_batchnorm(self.model, self._draw_inputs())
        return self.measure_accuracy(self.model)

    def measure_accuracy(self, model: nn.Module) -> float | None:
        """Return the top-1 accuracy on the evaluation data; None without any."""
        return None if self.eval_data is None else measure_top1(model, self.eval_data, self.track, example_inputs=self.example)

    def _draw_inputs(self) -> Iterator[Batch]:
        order = shuffled_batches(len(self.data), BATCHNORM_SAMPLES, EVAL_BATCH)  # type: ignore[arg-type]
        for indices in self.track(order, "re-estimating BatchNorm", len(order)):
            yield fetch_samples(self.data, indices, example=self.example, labelled=False)[0]


@torch.inference_mode()
def measure_top1(
    model: nn.Module, data: "Dataset[Any]", track: Track = track_silently, *, example_inputs: Batch | None = None
) -> float | None:
    """Return the top-1 accuracy of `model` on labelled data as a fraction; None without labels, or without one output of class scores."""
    model.eval()
    classes = _count_classes(_example_outputs(model, data, example_inputs)) if len(data) else None  # type: ignore[arg-type]
    if classes is None:
        return None
    right = total = 0
    order = chunks(range(len(data)), EVAL_BATCH)  # type: ignore[arg-type]
    for indices in track(order, "evaluating", len(order)):
        x, labels = fetch_samples(data, indices, example=example_inputs, classes=classes)
        scores = scores_of(batches.run_model(model, x))
        if labels is None or scores is None:
            return None
        right += round(top1(scores, labels) * len(scores))
        total += len(scores)
    return right / total


def has_fast_bf16() -> bool:
    """Whether this processor multiplies in bfloat16, which makes training faster."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@torch.inference_mode()
def _example_outputs(model: nn.Module, data: "Dataset[Any]", example: Batch | None) -> Batch:
    """Return the outputs of a network in eval mode for one sample."""
    return batches.run_model(model, example or fetch_samples(data, [0], labelled=False)[0])


def _count_classes(outputs: Batch) -> int | None:
    """Return the number of classes; None where no output is class scores, and labels may be anything, e.g. images."""
    scores = scores_of(outputs)
    return None if scores is None else scores.shape[1]


def _to_float32(outputs: Batch) -> Batch:
    return tuple(y.float() if y.is_floating_point() else y for y in outputs)


def _make_optimizer(model: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    rate = USUAL_RATE[options.optimizer]
    if options.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=options.weight_decay, nesterov=True)
    return torch.optim.AdamW(model.parameters(), rate, weight_decay=options.weight_decay)


def _check_options(options: FinetuneOptions) -> None:
    if options.epochs < 0 or options.samples < 2 or options.batch_size < 2 or not 0 <= options.learning_rate < math.inf:
        raise ConfigError("fine-tuning: epochs must be ≥ 0, samples ≥ 2, batch size ≥ 2, learning rate ≥ 0")
    if options.optimizer not in USUAL_RATE:
        raise ConfigError(f"unknown optimizer {options.optimizer!r}; choose from {', '.join(USUAL_RATE)}")
