"""The epoch loop of fine-tuning and quantization-aware training: schedule, shuffled batches, checkpoint and resume.

A kind of training is a `TrainingTask`; it says how outputs are computed and what happens before and after an epoch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import describe_dataset, fetch_samples
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.progress import Track
from edgecompress.records import Epoch
from edgecompress.recovery.checkpoint import make_key, resume_training, save_checkpoint
from edgecompress.recovery.schedule import distillation_loss, epoch_seed, learning_rate_fraction, shuffled_batches

MAX_GRAD_NORM: Final = 1.0  # the loss of outputs with small numbers is divided by a small power, so its gradients can be very large


class LoopOptions(Protocol):
    """Options that every kind of training has."""

    @property
    def epochs(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def distill(self) -> float: ...
    @property
    def seed(self) -> int: ...


class TrainingTask(ABC):
    """One kind of training: a network that learns from a teacher.

    Attributes:
        name: Begins error messages.
        title: Begins the title of an epoch's progress bar.
        remedy: Ends the message about a loss that is not finite.
        model: The network whose parameters are trained and whose state is checkpointed.
        optimizer: Holds the model's parameters.
        peak_rate: Learning rate at the peak of the schedule.
        clips_gradients: Whether gradients are clipped to `MAX_GRAD_NORM`; read after `start_epoch`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    remedy: ClassVar[str]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    peak_rate: float
    clips_gradients: bool = True

    def evaluate_start(self) -> list[Epoch]:
        """Return the record of the network before training, as epoch 0; [] where none is kept."""
        return []

    @abstractmethod
    def start_epoch(self) -> int | None:
        """Prepare the network for an epoch; return how many classes its scores tell apart, None where no output holds scores."""

    @abstractmethod
    def compute_outputs(self, x: Batch) -> tuple[Batch, Batch]:
        """Return the network's outputs, with gradients, and the teacher's."""

    def finish_epoch(self, number: int) -> float | None:
        """Return the top-1 accuracy after an epoch; None where it is not measured."""
        return None


def run_epochs(
    task: TrainingTask,
    data: "Dataset[Any]",
    *,
    example: Batch | None,
    options: LoopOptions,
    checkpoint_path: Path | None,
    track: Track,
) -> list[Epoch]:
    """Train the task's network in place, from its last checkpoint where one is there; return the record of each epoch.

    The caller's random state stays unchanged, and every epoch has a seed of its own, so that a resumed run equals an uninterrupted one.

    Raises:
        ConfigError: The loss became NaN or infinite, or the checkpoint is damaged.
    """
    key = make_key(task.model, options, describe_dataset(data))
    epochs = list(resume_training(checkpoint_path, key, task.model, task.optimizer)) if checkpoint_path else []
    with torch.random.fork_rng(devices=[]):
        epochs = epochs or task.evaluate_start()
        for number in range(epochs[-1].epoch + 1 if epochs else 1, options.epochs + 1):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(options.seed, number))
            loss = _run_epoch(task, data, example, options, number, track)
            score = task.finish_epoch(number)
            rate = float(task.optimizer.param_groups[0]["lr"])
            epochs.append(Epoch(epoch=number, loss=loss, top1=score, learning_rate=rate, seconds=time.perf_counter() - started))
            if checkpoint_path:
                save_checkpoint(checkpoint_path, key, task.model, task.optimizer, epochs)
    return epochs


def _run_epoch(task: TrainingTask, data: "Dataset[Any]", example: Batch | None, options: LoopOptions, number: int, track: Track) -> float:
    """Train for one epoch, the first being 1; return the mean loss."""
    classes = task.start_epoch()
    title = f"{task.title} {number}/{options.epochs}"
    order = shuffled_batches(len(data), options.samples, options.batch_size)  # type: ignore[arg-type]
    steps: Iterable[list[int]] = track(order, title, len(order))
    losses = []
    for step, indices in enumerate(steps):
        for group in task.optimizer.param_groups:
            group["lr"] = task.peak_rate * learning_rate_fraction((number - 1 + (step + 1) / len(order)) / options.epochs)
        x, labels = fetch_samples(data, indices, example=example, labelled=classes is not None, classes=classes)
        outputs, wanted = task.compute_outputs(x)
        loss = distillation_loss(outputs, wanted, labels, temperature=options.temperature, distill=options.distill)
        if not bool(loss.isfinite()):
            raise ConfigError(f"{task.name}: the loss became {float(loss.detach())} in {title}; {task.remedy}")
        task.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if task.clips_gradients:
            nn.utils.clip_grad_norm_(task.model.parameters(), MAX_GRAD_NORM)
        task.optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)
