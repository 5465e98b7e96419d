"""Run one cell of the comparison of allocators: compress a network to one MACs ratio by one allocator, fine-tune and score it."""

import copy
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Final, NamedTuple

import torch
from allocator_tasks import Task
from torch import nn
from torch.nn import functional as F

from edgecompress.data import fetch_samples
from edgecompress.factorizations.fitting import fit_layers
from edgecompress.factorizations.parallel import FactorizationJob
from edgecompress.network import batches
from edgecompress.network.analyze import analyze
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import divergence, top1
from edgecompress.network.surgery import forward, replace_module
from edgecompress.planning import sensitivity
from edgecompress.planning.allocators import ALLOCATORS, vbmf
from edgecompress.planning.candidates import DENSE, Candidate
from edgecompress.planning.fitted_candidates import find_candidates, methods_to_try
from edgecompress.planning.offers import make_offers
from edgecompress.records import Record
from edgecompress.recovery.finetune import FinetuneOptions, finetune

AUTO: Final = "auto"
MEASURED, ERRORS = "measured", "squared errors"  # the two sources of layer losses
PLANNING_SAMPLES: Final = 256  # the default of `edgecompress plan`
RANK_MULTIPLE: Final = 8


class Cell(Record, frozen=True, kw_only=True):
    """The settings of one result.

    Attributes:
        allocator: One of ALLOCATORS, or "dense": the network as it is, trained on like all others.
        ratio: MACs after over before; 1 for the dense network.
        method: One of METHODS for every layer, or "auto" as in `plan`.
        losses: Whether the losses of layers are measured or are squared relative errors.
        samples: Training samples an epoch.
    """

    task: str
    allocator: str
    ratio: float
    epochs: int
    samples: int
    method: str = AUTO
    losses: str = MEASURED
    data_aware: bool = False
    seed: int = 0


class Score(Record, frozen=True, kw_only=True):
    """Accuracy as a fraction, cross-entropy with the labels, and divergence from the dense network in nats, on all test images."""

    top1: float
    cross_entropy: float
    divergence: float


class Result(Record, frozen=True, kw_only=True):
    """The scores of a cell.

    Attributes:
        predicted: Sum of the losses of the layers, in nats where they are measured.
        before: Score after BatchNorm re-estimation, before fine-tuning.
        layers: Method and rank of every layer that is not dense.
    """

    cell: Cell
    macs: int
    macs_before: int
    params: int
    params_before: int
    predicted: float
    before: Score
    after: Score
    layers: dict[str, str]
    tests: int
    seconds: float
    machine: str
    date: str


class Planned(NamedTuple):
    """The candidates and losses that the allocators choose from."""

    candidates: Mapping[str, list[Candidate]]
    losses: Mapping[str, sensitivity.Losses]


class Runner:
    """Runs the cells of one task; computes once what the cells share.

    Args:
        inputs: Number of inputs on which the losses of layers are measured.
    """

    def __init__(self, task: Task, *, inputs: int = PLANNING_SAMPLES) -> None:
        self.task = task
        self.stats = analyze(task.model, task.example, name=task.name, measure=False)
        self.reference = forward(task.model, task.test[0])
        self.inputs = cache(lambda seed: fetch_samples(task.calibration, inputs, seed=seed, labelled=False)[0])
        self.planned = cache(self._planned)

    def run(self, cell: Cell) -> Result:
        """Plan, decompose, fine-tune and score."""
        started = time.perf_counter()
        chosen, predicted = self.choose(cell)
        model = self.decomposed(chosen, inputs=self.inputs(cell.seed) if cell.data_aware else None)
        made = analyze(model, self.task.example, name=cell.task, measure=False)
        return Result(
            cell=cell,
            macs=made.macs,
            macs_before=self.stats.macs,
            params=made.params,
            params_before=self.stats.params,
            predicted=predicted,
            before=self.score(self.finetuned(model, cell, epochs=0)),
            after=self.score(self.finetuned(model, cell, epochs=cell.epochs)),
            layers={name: f"{c.method} {'×'.join(map(str, c.rank))}" for name, c in chosen.items()},
            tests=len(self.task.test[1]),
            seconds=round(time.perf_counter() - started, 1),
            machine=f"{platform.machine()}, {torch.cpu.get_capabilities().get('cpu_name', '')}, threads: {torch.get_num_threads()}",
            date=str(datetime.now(UTC).date()),
        )

    def choose(self, cell: Cell) -> tuple[dict[str, Candidate], float]:
        """Return the candidate of each factorized layer, and the predicted loss of all of them."""
        if cell.allocator == DENSE:
            return {}, 0.0
        planned = self.planned(cell.method, cell.data_aware, cell.seed)
        losses = planned.losses[cell.losses]
        allocator = ALLOCATORS[cell.allocator]
        offered = make_offers(self.task.model, planned.candidates, losses, weakening=allocator is vbmf)
        picked = allocator.allocate(offered, cell.ratio * self.stats.macs)
        if picked is None:
            raise ValueError(f"{cell}: out of reach")
        every = {name: found[i] for (name, found), i in zip(planned.candidates.items(), picked, strict=True)}
        chosen = {name: c for name, c in every.items() if c.method != DENSE}
        return chosen, sum(losses[name, c.method, c.rank] for name, c in chosen.items())

    def decomposed(self, chosen: Mapping[str, Candidate], *, inputs: Batch | None) -> nn.Module:
        model = copy.deepcopy(self.task.model)
        jobs = [FactorizationJob(name, model.get_submodule(name), c.method, c.rank, dict(c.options)) for name, c in chosen.items()]
        for job, made in zip(jobs, fit_layers(self.task.model, jobs, inputs=inputs), strict=True):
            replace_module(model, job.name, made.compact)
        return model

    def _planned(self, method: str, data_aware: bool, seed: int) -> Planned:
        """Fit the candidates and measure their losses, once for all allocators and ratios."""
        candidates = find_candidates(
            self.task.model, self.stats, methods_to_try(method, None, measured=False), multiple=RANK_MULTIPLE
        ).candidates
        few = batches.take_samples(self.inputs(seed), slice(sensitivity.affordable_samples(candidates, self.stats.macs)))
        measured = sensitivity.measure_losses(self.task.model, candidates, few, data_aware=data_aware)
        return Planned(candidates, {MEASURED: measured, ERRORS: sensitivity.squared_errors(candidates)})

    def finetuned(self, model: nn.Module, cell: Cell, *, epochs: int) -> nn.Module:
        options = FinetuneOptions(epochs=epochs, samples=cell.samples, seed=cell.seed, threads=torch.get_num_threads())
        return finetune(model, self.task.train, teacher=self.task.model, example_inputs=self.task.example, options=options)[0]

    def score(self, model: nn.Module) -> Score:
        inputs, labels = self.task.test
        outputs = forward(model, inputs)
        return Score(
            top1=top1(outputs[0], labels),
            cross_entropy=float(F.cross_entropy(outputs[0], labels)),
            divergence=float(divergence(outputs, self.reference)),
        )


def mean(results: Sequence[Result], *, before: bool = False) -> Score:
    """Return the mean score over seeds."""
    scores = [result.before if before else result.after for result in results]
    return Score(**{name: sum(getattr(score, name) for score in scores) / len(scores) for name in Score.__struct_fields__})
