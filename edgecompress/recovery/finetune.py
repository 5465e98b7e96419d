"""Recover accuracy: re-estimate BatchNorm, then distil from the dense model. Resumable after every epoch, deterministic for a seed."""

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
from edgecompress.recovery import checkpoint
from edgecompress.recovery.schedule import MAX_GRAD_NORM, chunks, distillation_loss, epoch_seed, learning_rate_fraction, shuffled_batches

BATCHNORM_SAMPLES: Final = 2048
EVAL_BATCH: Final = 250
NOTHING: Final = Samples(torch.empty(0), None, source="no data")


class FinetuneOptions(Record, frozen=True, kw_only=True):
    """How to fine-tune.

    Attributes:
        samples: Training samples an epoch; a larger set is drawn from anew each epoch.
        learning_rate: Peak of a cosine schedule with a short warm-up; 0 takes the optimizer's usual one.
        distill: Weight of the distillation loss; the rest is cross-entropy with the labels.
        precision: Of the forward and backward pass; "auto" is bf16 where the processor multiplies in it, else fp32. Weights are fp32.
        threads: 0 for torch's own number. The same seed gives the same weights for the same number.
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


USUAL_RATE: Final = {"sgd": 0.01, "adamw": 1e-3}


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
    """Return a fine-tuned copy of `model` and the accuracies on the way.

    Args:
        model: The decomposed model; left untouched.
        train_data: Items as `edgecompress.data.recipe` says, or None to train nothing; without labels only the teacher is learnt from.
        teacher: The dense model.
        example_inputs: What the model takes; by default whatever the first sample is.
        eval_data: Labelled, for the accuracies; without it they are None.
        checkpoint_path: Written after each epoch; an existing one of the same start and options is continued.

    Raises:
        ConfigError: Options out of range, no data, or the loss became NaN.
    """
    options = options or FinetuneOptions()
    _check(options)
    data = NOTHING if train_data is None else train_data
    repair = has_batchnorm(model) and is_decomposed(model)
    if (options.epochs > 0 or repair) and len(data) < 2:  # type: ignore[arg-type]
        raise ConfigError("fine-tuning: fewer than two training samples; give train_data() or --data")
    # Channels last: the convolution kernels of CPUs are faster in it; shapes and results are the same.
    model = set_memory_format(copy.deepcopy(model), torch.channels_last)
    teacher = set_memory_format(copy.deepcopy(teacher), torch.channels_last).eval()
    dense_top1 = measure_top1(teacher, eval_data, track, example_inputs=example_inputs) if eval_data is not None else None
    key = checkpoint.key_of(model, options, describe_dataset(data))
    optimizer = _optimizer(model, options)
    epochs = list(checkpoint.resume(checkpoint_path, key, model, optimizer)) if checkpoint_path else []
    with torch.random.fork_rng(devices=[]), use_threads(options.threads):
        if not epochs:
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(options.seed, 0))
            if repair:
                dense = record_statistics(teacher, _inputs(data, example_inputs, track))
                torch.manual_seed(epoch_seed(options.seed, 0))  # the same samples
                reestimate_batchnorm(model, _inputs(data, example_inputs, track), since=dense)
            score = measure_top1(model, eval_data, track, example_inputs=example_inputs) if eval_data is not None else None
            epochs.append(Epoch(epoch=0, loss=0.0, top1=score, learning_rate=0.0, seconds=time.perf_counter() - started))
        for number in range(len(epochs), options.epochs + 1):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(options.seed, number))
            loss = _epoch(model, teacher, data, example_inputs, optimizer, options, number, track)
            if number == options.epochs and repair:  # running averages follow the last few batches; what ships must not
                reestimate_batchnorm(model, _inputs(data, example_inputs, track))
            score = measure_top1(model, eval_data, track, example_inputs=example_inputs) if eval_data is not None else None
            rate = float(optimizer.param_groups[0]["lr"])
            epochs.append(Epoch(epoch=number, loss=loss, top1=score, learning_rate=rate, seconds=time.perf_counter() - started))
            if checkpoint_path:
                checkpoint.save(checkpoint_path, key, model, optimizer, epochs)
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


@torch.inference_mode()
def measure_top1(
    model: nn.Module, data: "Dataset[Any]", track: Track = track_silently, *, example_inputs: Batch | None = None
) -> float | None:
    """Return the top-1 accuracy of `model` on labelled data as a fraction; None when there are no labels, or no one output is scores."""
    model.eval()
    classes = _classes(model, data, example_inputs) if len(data) else None  # type: ignore[arg-type]
    if classes is None:
        return None
    right = total = 0
    orders = chunks(range(len(data)), EVAL_BATCH)  # type: ignore[arg-type]
    for indices in track(orders, "evaluating", len(orders)):
        x, labels = fetch_samples(data, indices, example=example_inputs, classes=classes)
        scores = scores_of(batches.run_model(model, x))
        if labels is None or scores is None:
            return None
        right += round(top1(scores, labels) * len(scores))
        total += len(scores)
    return right / total


def _epoch(
    model: nn.Module,
    teacher: nn.Module,
    data: "Dataset[Any]",
    example: Batch | None,
    optimizer: torch.optim.Optimizer,
    options: FinetuneOptions,
    number: int,
    track: Track,
) -> float:
    """Train for one epoch, the first being 1; return the mean loss."""
    classes = _classes(teacher, data, example)
    model.train()
    losses = []
    title = f"epoch {number}/{options.epochs}"
    orders = shuffled_batches(len(data), options.samples, options.batch_size)  # type: ignore[arg-type]
    peak = options.learning_rate or USUAL_RATE[options.optimizer]
    low_precision = options.precision == "bf16" or (options.precision == "auto" and has_fast_bf16())
    for step, indices in enumerate(track(orders, title, len(orders))):
        for group in optimizer.param_groups:
            group["lr"] = peak * learning_rate_fraction((number - 1 + (step + 1) / len(orders)) / options.epochs)
        x, labels = fetch_samples(data, indices, example=example, labelled=classes is not None, classes=classes)
        x = tuple(part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part for part in x)
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            with torch.no_grad():
                wanted = _in_full(batches.run_model(teacher, x))
            outputs = _in_full(batches.run_model(model, x))
        loss = distillation_loss(outputs, wanted, labels, temperature=options.temperature, distill=options.distill)
        if not bool(loss.isfinite()):
            raise ConfigError(f"fine-tuning: the loss became {float(loss.detach())} in {title}; lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if not all(is_scores(y) for y in wanted):
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def _in_full(outputs: Batch) -> Batch:
    return tuple(y.float() if y.is_floating_point() else y for y in outputs)


@torch.inference_mode()
def _classes(model: nn.Module, data: "Dataset[Any]", example: Batch | None) -> int | None:
    """Return how many classes a model in eval mode scores; labels of one that gives no scores may be anything, e.g. images."""
    scores = scores_of(batches.run_model(model, example or fetch_samples(data, [0], labelled=False)[0]))
    return None if scores is None else scores.shape[1]


def _inputs(data: "Dataset[Any]", example: Batch | None, track: Track) -> Iterator[Batch]:
    orders = shuffled_batches(len(data), BATCHNORM_SAMPLES, EVAL_BATCH)  # type: ignore[arg-type]
    for indices in track(orders, "re-estimating BatchNorm", len(orders)):
        yield fetch_samples(data, indices, example=example, labelled=False)[0]


def _optimizer(model: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    rate = USUAL_RATE[options.optimizer]
    if options.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=options.weight_decay, nesterov=True)
    return torch.optim.AdamW(model.parameters(), rate, weight_decay=options.weight_decay)


def has_fast_bf16() -> bool:
    """Whether this processor multiplies in bfloat16; training is then faster."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check(options: FinetuneOptions) -> None:
    if options.epochs < 0 or options.samples < 2 or options.batch_size < 2 or not 0 <= options.learning_rate < math.inf:
        raise ConfigError("fine-tuning: epochs must be ≥ 0, samples ≥ 2, batch size ≥ 2, learning rate ≥ 0")
    if options.optimizer not in USUAL_RATE:
        raise ConfigError(f"unknown optimizer {options.optimizer!r}; choose from {', '.join(USUAL_RATE)}")
