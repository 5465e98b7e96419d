"""Fine-tuning: re-estimate BatchNorm statistics, then distil from the dense network, and keep the best epoch.

Resumable after every epoch, deterministic by seed. The network before training counts as an epoch, so training never makes it worse.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import Samples, count_items, describe_dataset, fetch_pairs
from edgecompress.data.code import digest_code
from edgecompress.data.content import digest_dataset
from edgecompress.data.losses import Loss, make_loss
from edgecompress.data.metrics import Metric, choose_metric
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch, structure_of, take_samples
from edgecompress.network.batchnorm import has_batchnorm
from edgecompress.network.modes import choose_training_mode
from edgecompress.network.output_kinds import KINDS, guess_specs
from edgecompress.network.outputs import Specs
from edgecompress.network.surgery import forward, is_decomposed, set_memory_format
from edgecompress.network.threads import use_threads
from edgecompress.progress import Track, track_silently
from edgecompress.records import Epoch, FinetuneResult, Record
from edgecompress.records.metrics import TOP1
from edgecompress.recovery.checkpoint import Progress, make_key
from edgecompress.recovery.distillation import Distillation
from edgecompress.recovery.evaluation import Evaluator, is_builtin
from edgecompress.recovery.loop import run_epochs
from edgecompress.recovery.losses import LABEL_LOSSES, choose_target_loss, use_loss
from edgecompress.recovery.selection import Chooser
from edgecompress.recovery.validation import hold_out

USUAL_RATE: Final = {"sgd": 0.01, "adamw": 1e-3}  # usual for networks that have been trained before
START_IS_KEPT: Final = "no epoch was better than the network before training, which is kept"
NO_DATA: Final = Samples(torch.empty(0), None, source="no data")


class FinetuneOptions(Record, frozen=True, kw_only=True):
    """How to fine-tune.

    Attributes:
        samples: Training samples per epoch; from a larger set each epoch draws others.
        learning_rate: Peak of a cosine schedule with a short warm-up; 0 takes the optimizer's usual one, or less where a short test shows
            that it would harm the network.
        distill: Weight of the distillation loss; the rest is the user's loss or that of labels.
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
    specs: Specs | None = None,
    metric: Metric | None = None,
    loss: Loss | Callable[[Any, Any], Any] | None = None,
    options: FinetuneOptions | None = None,
    checkpoint_path: Path | None = None,
    track: Track = track_silently,
) -> tuple[nn.Module, FinetuneResult]:
    """Return a fine-tuned copy of `model`, and the record of losses and accuracies.

    A part of the training data is held out, and the epoch that does best on it is returned, the repaired network before training included.
    No epoch is returned that is worse on the evaluation data than the network before training.

    Args:
        model: The decomposed network; stays unchanged.
        train_data: Items as `edgecompress.data.recipe` describes them; None trains nothing. Without labels, only the teacher teaches.
        teacher: The dense network.
        example_inputs: One sample of each input; by default the inputs of the data's first sample.
        eval_data: Labelled data for the accuracies; without it they are None.
        specs: The kinds of the outputs; None guesses them from the shapes.
        metric: Chooses the best epoch; by default top-1 or mean intersection over union where the data have such labels.
        loss: `loss(outputs, targets)`, which replaces the loss by labels.
        checkpoint_path: Written after each epoch; an existing checkpoint of the same start and options is continued.

    Raises:
        ConfigError: Options are out of range, data are missing, the user's loss is faulty, or the loss became NaN.
    """
    options = options or FinetuneOptions()
    _check_options(options)
    data = NO_DATA if train_data is None else train_data
    repairs = has_batchnorm(model) and is_decomposed(model)
    if (options.epochs > 0 or repairs) and count_items(data) < 2:
        raise ConfigError("fine-tuning: fewer than two training samples; give train_data() or --data")
    # Channels last: CPUs' convolution kernels are faster in it; shapes and results are the same.
    model = set_memory_format(copy.deepcopy(model), torch.channels_last)
    for parameter in model.parameters():  # those that were frozen when the network was trained must follow its new layers
        parameter.requires_grad_(parameter.is_floating_point())
    teacher = set_memory_format(copy.deepcopy(teacher), torch.channels_last).eval()
    given = loss if loss is None or isinstance(loss, Loss) else make_loss(loss)
    with use_threads(options.threads):
        example = example_inputs or _first_inputs(data) or _first_inputs(eval_data)
        specs = specs or (guess_specs(forward(teacher, example)) if example else ())
        evaluator = Evaluator(teacher, eval_data, metric=metric, specs=specs, example=example, track=track)
        if options.epochs or repairs:
            task, notes = _make_task(
                model,
                teacher,
                data,
                evaluator,
                example=example,
                specs=specs,
                metric=metric,
                loss=given,
                repairs=repairs,
                options=options,
                track=track,
            )
            read = (digest_dataset(data), digest_dataset(eval_data), digest_code(given and given.function, metric and metric.given))
            key = make_key(model, options, read, specs)
            progress = run_epochs(task, options=options, key=key, checkpoint_path=checkpoint_path, track=track)
            criterion = task.validation.criterion
        else:
            metrics = evaluator.measure(model)
            only = Epoch(epoch=0, loss=None, top1=metrics.get(TOP1.name), metrics=metrics, learning_rate=0.0, seconds=0.0)
            progress, notes, criterion = Progress(epochs=[only], state={}), [], ""
    start, best = progress.epochs[0], progress.best_epoch
    return set_memory_format(model, torch.contiguous_format).eval(), FinetuneResult(
        dense_top1=evaluator.dense.get(TOP1.name),
        before_top1=start.top1,
        top1=best.top1,
        metric=evaluator.headline if evaluator.metric is not None else None,
        dense_metrics=evaluator.dense,
        before_metrics=start.metrics,
        metrics=best.metrics,
        epochs=tuple(progress.epochs),
        best_epoch=best.epoch,
        validation=criterion,
        learning_rate=progress.peak_rate,
        rate_reason=progress.why,
        train_samples=count_items(data),
        eval_samples=count_items(eval_data) if eval_data is not None else 0,
        data=describe_dataset(data),
        seed=options.seed,
        note="; ".join([*notes, *progress.notes, *([START_IS_KEPT] if best is start and options.epochs else [])]),
    )


def _make_task(
    model: nn.Module,
    teacher: nn.Module,
    data: "Dataset[Any]",
    evaluator: Evaluator,
    *,
    example: Batch,
    specs: Specs,
    metric: Metric | None,
    loss: Loss | None,
    repairs: bool,
    options: FinetuneOptions,
    track: Track,
) -> tuple[Distillation, list[str]]:
    """Return the task of training, and remarks for the record.

    Raises:
        ConfigError: The user's loss or metric is faulty.
    """
    users = None if metric is None or is_builtin(metric) else metric
    wants_targets = loss is not None or users is not None or any(spec.kind in LABEL_LOSSES for spec in specs)
    indices, validation = hold_out(teacher, data, evaluator.data, specs=specs, example=example, with_targets=wants_targets)
    structure = structure_of(teacher, example)
    if loss is not None:
        target_loss, note = use_loss(loss, validation.wanted, validation.targets, structure)
    else:
        target_loss, note = choose_target_loss(validation.wanted, validation.targets, specs, describe_dataset(data))
    if validation.targets is not None:
        judge = users if users is not None or note else choose_metric(specs, validation.targets)
        if judge is not None:
            validation.use_metric(judge, structure)
    task = Distillation(
        model,
        teacher,
        data,
        optimizer=_make_optimizer(model, options),
        evaluator=evaluator,
        validation=validation,
        usual_rate=USUAL_RATE[options.optimizer],
        options=options,
        repairs=repairs,
        trains_leaves=options.epochs > 0 and choose_training_mode(model, take_samples(validation.inputs, slice(2))).leaves_alone,
        track=track,
    )
    task.indices, task.example, task.specs, task.target_loss = indices, example, specs, target_loss
    task.chooser = Chooser(validation.headline, validation.samples, evaluator.headline)
    task.clips_gradients = loss is not None or not all(KINDS[spec.kind].has_classes for spec in specs)
    return task, [note] if note else []


def _first_inputs(data: "Dataset[Any] | None") -> Batch:
    """Return the inputs of a dataset's first sample as a batch of one; () without any."""
    return fetch_pairs(data, [0], with_targets=False)[0] if data is not None and count_items(data) else ()


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
