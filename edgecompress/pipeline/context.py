"""What the steps of a run share: its folder, its recipe, the dense network, its data, and the inputs that artifacts are checked on."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from torch import nn
from torch.export import ExportedProgram

from edgecompress import data as datasets
from edgecompress.artifacts.judge import Judge
from edgecompress.artifacts.publish import Evidence
from edgecompress.data.losses import check_loss
from edgecompress.data.metrics import METRIC_BATCH, Metric, check_metric, choose_metric
from edgecompress.data.recipe import Recipe, recipe_at_resolution
from edgecompress.data.targets import Targets, check_labels
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import call_user_function
from edgecompress.files import stamp_files
from edgecompress.network.attention import unfuse_attention
from edgecompress.network.batches import Batch, Structure, output_names, structure_of
from edgecompress.network.checkpoints import load_checkpoint
from edgecompress.network.checks import check_dense
from edgecompress.network.exported import example_outputs, to_program
from edgecompress.network.output_reading import read_specs
from edgecompress.network.outputs import scores_of
from edgecompress.network.surgery import forward, unwrap_model
from edgecompress.network.weights import fingerprint
from edgecompress.options import Options
from edgecompress.pipeline.run_data import RunData
from edgecompress.pipeline.steps import STAGED, STEPS, stage_path
from edgecompress.progress import Track, track_silently
from edgecompress.records import OutputSpec, Record, read_record
from edgecompress.records.metrics import MetricSpec
from edgecompress.runs import Run, hash_values

R = TypeVar("R", bound=Record)
T = TypeVar("T")
OnStep = Callable[[str, Record, float, bool], None]
SMALL_NETWORK_MACS: Final = 100_000_000  # below it threads wait for each other as long as they compute, and far longer on a busy machine


def ignore_step(*_: object) -> None:
    """Report a step to nobody."""


class DenseNetwork:
    """The trained network of a recipe, loaded once, in eval mode.

    Args:
        weights: Checkpoint to load in place of the recipe's own weights; "" for none.
    """

    def __init__(self, recipe: Recipe, *, weights: str = "") -> None:
        self.recipe = recipe
        self.weights = weights
        self._notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """How the checkpoint was read, where it is no plain state dict of this network."""
        return self._notes if self.model else ()

    @cached_property
    def model(self) -> nn.Module:
        """The model with its checkpoint loaded and its attention in ordinary Linears, on the CPU.

        Raises:
            ConfigError: The recipe fails, the checkpoint does not fit, or the weights are not finite float32 numbers.
        """
        model = unwrap_model(call_user_function(self.recipe.model, "model()", self.recipe.source))
        check_dense(model, subject=self.recipe.source)
        if self.weights:
            path = Path(self.weights)
            self._notes = tuple(filter(None, (load_checkpoint(model, path),)))
            check_dense(model, subject=str(path))
        return unfuse_attention(model).cpu().eval()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return fingerprint(self.model)

    @cached_property
    def program(self) -> ExportedProgram:
        return to_program(self.model, self.recipe.example_inputs, name=self.recipe.name)

    @cached_property
    def structure(self) -> Structure:
        """How the network nests its outputs."""
        return structure_of(self.model, self.recipe.example_inputs)

    def read_outputs(self, targets: Targets | None) -> tuple[OutputSpec, ...]:
        """Return the kind of each output, read from the recipe, the graph and a few targets.

        Raises:
            ConfigError: The network does not run on its example inputs, or the recipe's `outputs()` does not fit it.
        """
        names = output_names(self.model, self.recipe.example_inputs)
        return read_specs(self.program, names=names, declared=self.recipe.outputs, targets=targets, subject=self.recipe.outputs_place)


@dataclass(frozen=True)
class RunContext:
    """One open run and all that its steps read. No step is a method of it.

    Attributes:
        recipe: At the resolution of the run.
        stage: The stage that a step works on, from 1; the last one for steps outside of stages.
        on_step: Called after each step with its name, record, seconds, and whether it was reused.
        memo: Results that several steps of one process need, by name, with a hash of what each was made from.
    """

    run: Run
    recipe: Recipe
    network: DenseNetwork
    data: RunData
    track: Track = track_silently
    on_step: OnStep = ignore_step
    stage: int = 1
    memo: dict[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def options(self) -> Options:
        return self.run.record.options

    @property
    def dense(self) -> nn.Module:
        """The trained network; every artifact is held to it."""
        return self.network.model

    def at_stage(self, stage: int) -> "RunContext":
        """Return the context of another stage of the same run."""
        return dataclasses.replace(self, stage=stage)

    def path(self, name: str) -> Path:
        """Return the path of a file of the present stage."""
        return self.run.path(stage_path(name, self.stage, self.options.stages))

    def step_name(self, step: str) -> str:
        """Return the name under which run.json lists a step of the present stage."""
        return stage_path(step, self.stage, self.options.stages) if step in STAGED else step

    def read(self, kind: type[R]) -> R:
        """Return the record of this type that a finished step left, of the present stage where it is one of several."""
        step = next(step for step in STEPS.values() if step.record is kind)
        return read_record(self.path(step.files[0]) if step.name in STAGED else self.run.path(step.files[0]), kind)

    def digest(self, step: str) -> str:
        """Return a hash of the files of a finished step of the present stage."""
        return self.run.digest(self.step_name(step))

    def remember(self, name: str, made_from: str, make: Callable[[], T]) -> T:
        """Return `make()`, computed once in this process for each `made_from`."""
        if name not in self.memo or self.memo[name][0] != made_from:
            self.memo[name] = (made_from, make())
        return cast("T", self.memo[name][1])

    @property
    def source(self) -> str:
        """Hash of the recipe, of the dense network and of the files at the path of `--data`; the key of every step holds it.

        What the data functions return is in the key of the steps that use it: see `hash_data`.

        Raises:
            ConfigError: Nothing lies at the path of `--data`.
        """
        shapes = [(tuple(x.shape), str(x.dtype)) for x in self.recipe.example_inputs]
        data = Path(self.options.data) if self.options.data else None
        if data is not None and not data.exists():
            raise ConfigError(f"{data}: no such file or folder; give --data an ImageFolder, an .npz or idx files")

        def hash_source() -> str:
            files = [] if data is None else stamp_files(data)
            return hash_values(self.recipe.sources_sha256, self.network.fingerprint, shapes, self.options.data, files)

        return self.remember("source", self.options.data, hash_source)

    def hash_data(self, splits: tuple[str, ...]) -> str:
        """Return a hash of what the datasets of some splits hold, which the keys of steps that use them contain."""
        return hash_values([self.data.digest(split) for split in splits])

    @property
    def output_specs(self) -> tuple[OutputSpec, ...]:
        """The kind of each output; losses, fidelity and parity go by it."""
        return self.remember("output specs", self.source, lambda: self.network.read_outputs(self._sample_targets))

    @property
    def metric(self) -> Metric | None:
        """The recipe's metric, else top-1 or mean IoU where an output holds classes and targets fit; None leaves fidelity to decide."""
        return self.recipe.metric or self._usual_metric

    @property
    def _usual_metric(self) -> Metric | None:
        return self.remember("usual metric", self.source, lambda: choose_metric(self.output_specs, self._sample_targets))

    @property
    def _sample_targets(self) -> Targets | None:
        return self.remember("sample targets", self.source, self.data.sample_targets)

    @property
    def has_labels(self) -> bool:
        """Whether targets are the classes of one output with a vector of class scores."""
        return self._usual_metric is not None and self._usual_metric.place == "top-1"

    @property
    def judge(self) -> Judge:
        """Compares networks and files with the dense network, on the evidence."""
        o = self.options
        made_from = hash_values(self.source, o.verify_samples, o.max_loss, o.min_fidelity)
        return self.remember("judge", made_from, lambda: self.create_judge(self.dense_outputs, self.evidence.targets))

    def create_judge(self, dense: Batch, targets: Targets | None) -> Judge:
        """Return the judge of outputs on some inputs, of which the dense network's outputs and the targets are given."""
        o = self.options
        metric = self.metric if targets is not None else None
        return Judge(self.output_specs, dense, metric, targets, self.network.structure, o.max_loss, o.min_fidelity)

    def check_judging(self) -> tuple[MetricSpec, ...]:
        """Try the metric and the loss of the recipe on a few samples, so that faulty ones are refused before anything long runs.

        Returns:
            The descriptions of the metric's values; () without a metric of the recipe, or without data.

        Raises:
            ConfigError: Names the function and its place.
        """
        metric, loss, structure = self.recipe.metric, self.recipe.loss, self.network.structure
        if loss is not None and (tried := self._try_samples("train", loss.place)) is not None:
            check_loss(loss, *tried, structure)
        tried = self._try_samples("evidence", metric.place) if metric is not None else None
        return () if metric is None or tried is None else check_metric(metric, *tried, structure)

    def _try_samples(self, split: str, place: str) -> tuple[Batch, Targets] | None:
        """Return the dense network's outputs for a few samples and their targets; None without data."""
        dataset = self.data.dataset(split)
        if dataset is None:
            return None
        inputs, targets = datasets.fetch_pairs(dataset, METRIC_BATCH, seed=0, example=self.recipe.example_inputs)
        if targets is None:
            raise ConfigError(f"{datasets.describe_dataset(dataset)}: yields no targets, {place} needs them; yield (input, target)")
        return forward(self.dense, inputs), targets

    @property
    def evidence(self) -> Evidence:
        """Real inputs that artifacts are checked on: evaluation data, or calibration data where there are none."""
        return self.remember("evidence", hash_values(self.source, self.options.verify_samples), self._fetch_evidence)

    def _fetch_evidence(self) -> Evidence:
        dataset = self.data.dataset("eval")
        dataset = self.data.dataset("calibration") if dataset is None else dataset
        wanted = self.metric is not None
        inputs, targets = datasets.fetch_pairs(
            dataset, self.options.verify_samples, example=self.recipe.example_inputs, with_targets=wanted
        )
        source = datasets.describe_dataset(dataset)
        labels = check_labels(targets, source, classes=self._count_classes()) if self.has_labels and targets is not None else None
        return Evidence(inputs=inputs, labels=labels, data=source, targets=targets)

    def _count_classes(self) -> int | None:
        scores = scores_of(example_outputs(self.network.program), self.output_specs)
        return None if scores is None else scores.shape[1]

    @property
    def dense_outputs(self) -> Batch:
        """The outputs of the dense network for the evidence."""
        return self.remember(
            "dense outputs", hash_values(self.source, self.options.verify_samples), lambda: forward(self.dense, self.evidence.inputs)
        )

    @property
    def repairs(self) -> bool:
        """Whether fine-tuning follows a decomposition."""
        return self.data.can_train and self.options.epochs > 0


def open_context(run: Run, recipe: Recipe, *, track: Track = track_silently, on_step: OnStep = ignore_step) -> RunContext:
    """Return the context of an open run, whose options are set already, for a recipe."""
    o = run.record.options
    sized = recipe_at_resolution(recipe, o.resolution)
    network = DenseNetwork(sized, weights=o.weights)
    return RunContext(run, sized, network, RunData(sized, path=o.data, seed=o.seed), track=track, on_step=on_step, stage=o.stages)
