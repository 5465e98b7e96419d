"""The epoch loop of fine-tuning and quantization-aware training: schedule, shuffled batches, the best epoch, checkpoint and resume.

A kind of training is a `TrainingTask`; it says how outputs are computed and what happens before and after an epoch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import fetch_pairs
from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import Specs
from edgecompress.progress import Track
from edgecompress.records import Epoch
from edgecompress.recovery.checkpoint import Progress, copy_state, resume_training, save_checkpoint
from edgecompress.recovery.losses import TargetLoss, distillation_loss
from edgecompress.recovery.schedule import epoch_seed, learning_rate_fraction, shuffled_batches
from edgecompress.recovery.selection import Chooser, is_over

MAX_GRAD_NORM: Final = 1.0  # the loss of outputs with small numbers is divided by a small power, so its gradients can be very large


RATE_IS_SPENT: Final = "and the learning rate is nearly spent"


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


class NotFiniteError(ConfigError):
    """The loss became NaN or infinite."""


class Assessment(NamedTuple):
    """What is known of a network between epochs; the fields are those of `Epoch`."""

    score: float | None = None
    divergence: float | None = None
    top1: float | None = None
    metrics: dict[str, float] = {}


class TrainingTask(ABC):
    """One kind of training: a network that learns from a teacher.

    Attributes:
        name: Begins error messages.
        title: Begins the title of an epoch's progress bar.
        remedy: Ends the message about a loss that is not finite.
        model: The network whose parameters are trained and whose state is checkpointed.
        optimizer: Holds the model's parameters.
        data, indices: The samples to train on.
        specs: The kinds of the outputs; None guesses them from the shapes.
        target_loss: The part of the loss by the targets; None ignores the targets.
        chooser: Prefers one epoch to another.
        clips_gradients: Whether gradients are clipped to `MAX_GRAD_NORM`.
        raises_not_finite: Whether a loss that is not finite is an error, since the user chose the rate; otherwise it ends training.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    remedy: ClassVar[str]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: "Dataset[Any]"
    indices: Sequence[int]
    example: Batch
    specs: Specs | None = None
    target_loss: TargetLoss | None = None
    chooser: Chooser = Chooser(None, 0)
    clips_gradients: bool = True
    raises_not_finite: bool = True

    @abstractmethod
    def measure_start(self, notes: list[str]) -> Assessment:
        """Prepare the network before training, e.g. repair it, and measure it; remarks for the record are added to `notes`."""

    @abstractmethod
    def choose_rate(self, start: Epoch) -> tuple[float, str]:
        """Return the learning rate at the peak of the schedule, and why it was taken, in words; the network stays as it is."""

    @abstractmethod
    def start_epoch(self) -> None:
        """Prepare the network for an epoch."""

    @abstractmethod
    def compute_outputs(self, x: Batch) -> tuple[Batch, Batch]:
        """Return the network's outputs, with gradients, and the teacher's."""

    @abstractmethod
    def finish_epoch(self) -> Assessment:
        """Measure the network after an epoch."""


def run_epochs(task: TrainingTask, *, options: LoopOptions, key: str, checkpoint_path: Path | None, track: Track) -> Progress:
    """Train the task's network in place, from its last checkpoint where one is there, and leave it in the state of its best epoch.

    The caller's random state stays unchanged, and every epoch has a seed of its own, so that a resumed run equals an uninterrupted one.

    Args:
        key: A checkpoint with another one is not continued.

    Raises:
        ConfigError: The loss became NaN or infinite, or the checkpoint is damaged.
    """
    progress = resume_training(checkpoint_path, key, task.model, task.optimizer) if checkpoint_path else None
    with torch.random.fork_rng(devices=[]):
        if progress is None:
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(options.seed, 0))
            notes: list[str] = []
            start = _describe_epoch(0, None, 0.0, started, task.measure_start(notes))
            progress = Progress(epochs=[start], state=copy_state(task.model), notes=notes)
            if options.epochs:
                progress.peak_rate, progress.why = task.choose_rate(start)
        for number in range(progress.epochs[-1].epoch + 1, options.epochs + 1):
            if is_over(progress.epochs, progress.best, options.epochs):
                last = progress.epochs[-1].epoch
                progress.notes.append(f"training ended after epoch {last}: nothing improved since epoch {progress.best}, {RATE_IS_SPENT}")
                break
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(options.seed, number))
            try:
                loss = _run_epoch(task, options, progress.peak_rate, number, track)
            except NotFiniteError as error:
                if task.raises_not_finite:
                    raise
                progress.notes.append(f"{str(error).partition('; ')[0]}, which ended it")
                break
            rate = float(task.optimizer.param_groups[0]["lr"])
            epoch = _describe_epoch(number, loss, rate, started, task.finish_epoch())
            if task.chooser.prefers(epoch, progress.best_epoch, progress.epochs):
                progress.best, progress.state = number, copy_state(task.model)
            progress.epochs.append(epoch)
            if checkpoint_path:
                save_checkpoint(checkpoint_path, key, task.model, task.optimizer, progress)
    task.model.load_state_dict(progress.state)
    return progress


def train_batches(
    task: TrainingTask, options: LoopOptions, order: Iterable[list[int]], rate_of: Callable[[int], float], title: str
) -> list[float]:
    """Take a step for each batch of sample indices, with the learning rate `rate_of(step)`; return the losses.

    Raises:
        NotFiniteError: The loss became NaN or infinite.
    """
    task.start_epoch()
    losses = []
    for step, indices in enumerate(order):
        for group in task.optimizer.param_groups:
            group["lr"] = rate_of(step)
        x, targets = fetch_pairs(task.data, indices, example=task.example, with_targets=task.target_loss is not None)
        outputs, wanted = task.compute_outputs(x)
        loss = distillation_loss(
            outputs,
            wanted,
            targets,
            specs=task.specs,
            target_loss=task.target_loss,
            temperature=options.temperature,
            distill=options.distill,
        )
        if not bool(loss.isfinite()):
            raise NotFiniteError(f"{task.name}: the loss became {float(loss.detach())} in {title}; {task.remedy}")
        task.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if task.clips_gradients:
            nn.utils.clip_grad_norm_(task.model.parameters(), MAX_GRAD_NORM)
        task.optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _run_epoch(task: TrainingTask, options: LoopOptions, peak_rate: float, number: int, track: Track) -> float:
    """Train for one epoch, the first being 1; return the mean loss."""
    title = f"{task.title} {number}/{options.epochs}"
    order = shuffled_batches(task.indices, options.samples, options.batch_size)
    losses = train_batches(
        task,
        options,
        track(order, title, len(order)),
        lambda step: peak_rate * learning_rate_fraction((number - 1 + (step + 1) / len(order)) / options.epochs),
        title,
    )
    return sum(losses) / len(losses)


def _describe_epoch(number: int, loss: float | None, rate: float, started: float, measured: Assessment) -> Epoch:
    return Epoch(epoch=number, loss=loss, learning_rate=rate, seconds=time.perf_counter() - started, **measured._asdict())
