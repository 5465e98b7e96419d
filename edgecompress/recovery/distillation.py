"""Distillation of the dense network into the decomposed one: what fine-tuning does before, in and after an epoch."""

from collections.abc import Iterator
from typing import Any, Final, Literal, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from edgecompress.data import fetch_pairs
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import record_statistics, reestimate_batchnorm
from edgecompress.network.modes import train_leaves
from edgecompress.progress import Track
from edgecompress.records import Epoch
from edgecompress.records.metrics import TOP1
from edgecompress.recovery.checkpoint import copy_state
from edgecompress.recovery.evaluation import Evaluator, choose_eval_batch
from edgecompress.recovery.learning_rate import find_learning_rate
from edgecompress.recovery.loop import Assessment, LoopOptions, TrainingTask
from edgecompress.recovery.schedule import epoch_seed, shuffled_batches
from edgecompress.recovery.validation import Validation

BATCHNORM_SAMPLES: Final = 2048  # bounds the time of a pass; statistics of more samples hardly differ
TEST_SAMPLES: Final = 512  # for the statistics after a short test of a learning rate


class DistillationOptions(LoopOptions, Protocol):
    """Options that distillation reads."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def precision(self) -> Literal["auto", "bf16", "fp32"]: ...


class Distillation(TrainingTask):
    """Distillation of the dense network into the decomposed one, with BatchNorm statistics re-estimated before training and after epochs.

    Re-estimated statistics that are worse on the validation samples than those before are taken back.

    Args:
        model: Trained in place.
        usual_rate: The highest learning rate where the options give none.
        repairs: Whether BatchNorm statistics are re-estimated, because layers were replaced.
        trains_leaves: Whether the network returns other outputs in training mode; see `modes.choose_training_mode`.
    """

    name = "fine-tuning"
    title = "epoch"
    remedy = "lower --learning-rate"

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        data: "Dataset[Any]",
        *,
        optimizer: torch.optim.Optimizer,
        evaluator: Evaluator,
        validation: Validation,
        usual_rate: float,
        options: DistillationOptions,
        repairs: bool,
        trains_leaves: bool,
        track: Track,
    ) -> None:
        self.model, self.teacher, self.data, self.optimizer = model, teacher, data, optimizer
        self.evaluator, self.validation, self.usual_rate, self.options = evaluator, validation, usual_rate, options
        self.repairs, self.trains_leaves, self.track = repairs, trains_leaves, track
        self.raises_not_finite = options.learning_rate > 0
        self.low_precision = options.precision == "bf16" or (options.precision == "auto" and has_fast_bf16())

    def measure_start(self, notes: list[str]) -> Assessment:
        before = self._evaluate(self._validate())
        if not self.repairs:
            return before
        state, statistics = copy_state(self.model), record_statistics(self.teacher, self._draw_inputs(BATCHNORM_SAMPLES))
        torch.manual_seed(epoch_seed(self.options.seed, 0))  # the same samples
        reestimate_batchnorm(self.model, self._draw_inputs(BATCHNORM_SAMPLES), since=statistics)
        after = self._evaluate(self._validate())
        if self.chooser.is_worse(after, before):
            self.model.load_state_dict(state)
            notes.append("re-estimated BatchNorm statistics did worse than the old ones, which are kept")
            return before
        return after

    def choose_rate(self, start: Epoch) -> tuple[float, str]:
        if self.options.learning_rate:
            return self.options.learning_rate, "as asked"
        if start.divergence is None:
            return self.usual_rate, "the usual one"
        return find_learning_rate(self, self.options, self.usual_rate, start.divergence, self._measure_test)

    def start_epoch(self) -> None:
        if self.trains_leaves:
            train_leaves(self.model)
        else:
            self.model.train()

    def compute_outputs(self, x: Batch) -> tuple[Batch, Batch]:
        x = tuple(part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part for part in x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            with torch.no_grad():
                wanted = _to_float32(batches.run_model(self.teacher, x))
            return _to_float32(batches.run_model(self.model, x)), wanted

    def finish_epoch(self) -> Assessment:
        measured = self._validate()
        if self.repairs:  # running averages follow the last few batches
            state = copy_state(self.model)
            reestimate_batchnorm(self.model, self._draw_inputs(BATCHNORM_SAMPLES))
            repaired = self._validate()
            if self.chooser.is_worse(repaired, measured):
                self.model.load_state_dict(state)
            else:
                measured = repaired
        return self._evaluate(measured)

    def _measure_test(self) -> float | None:
        """Return the divergence after a short test of a learning rate."""
        if self.repairs:
            reestimate_batchnorm(self.model, self._draw_inputs(TEST_SAMPLES))
        return self.validation.measure(self.model).divergence

    def _validate(self) -> Assessment:
        score, divergence = self.validation.measure(self.model)
        return Assessment(score=score, divergence=divergence)

    def _evaluate(self, measured: Assessment) -> Assessment:
        """Add the values on the evaluation data."""
        metrics = self.evaluator.measure(self.model)
        return measured._replace(top1=metrics.get(TOP1.name), metrics=metrics)

    def _draw_inputs(self, samples: int) -> Iterator[Batch]:
        order = shuffled_batches(self.indices, samples, choose_eval_batch(self.example))
        for indices in self.track(order, "re-estimating BatchNorm", len(order)):
            yield fetch_pairs(self.data, indices, example=self.example, with_targets=False)[0]


def has_fast_bf16() -> bool:
    """Whether this processor multiplies in bfloat16, which makes training faster."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _to_float32(outputs: Batch) -> Batch:
    return tuple(y.float() if y.is_floating_point() else y for y in outputs)
