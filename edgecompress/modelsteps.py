"""The steps of a run that make the model: from the dense network to the compressed, fine-tuned one."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecompress import data as datasets
from edgecompress import records
from edgecompress.attention import closed, opened
from edgecompress.batches import Batch
from edgecompress.errors import ConfigError
from edgecompress.files import stamp, write_atomic
from edgecompress.options import Options, fixed_layers, method_of
from edgecompress.progress import Track, silent
from edgecompress.recipe import Data, Recipe, call
from edgecompress.records import CompressionPlan, Record, read, to_json
from edgecompress.runs import FILES, Run, key, stopwatch
from edgecompress.targets import TARGETS
from edgecompress.verbs.analyze import analyze
from edgecompress.verbs.decompose import decompose
from edgecompress.verbs.finetune import FinetuneOptions, finetune
from edgecompress.verbs.plan import plan
from edgecompress.weights import check_dense, fingerprint, load_into, read_state, save_state

R = TypeVar("R", bound=Record)
OnStep = Callable[[str, Record, float, bool], None]
CHECKPOINT = "finetune.checkpoint.safetensors"
SMALL_NETWORK = 100_000_000  # MACs; below it threads wait for each other as long as they compute, and far longer on a busy machine


def ignore(*_: object) -> None:
    """Nobody wants to know."""


class ModelSteps:
    """One run folder, its recipe, and the steps up to the fine-tuned network. Results are read from disk when their inputs are unchanged.

    Args:
        on_step: Called after each step with its name, record, seconds, and whether it was reused.
    """

    def __init__(self, run: Run, recipe: Recipe, *, track: Track = silent, on_step: OnStep = ignore) -> None:
        self.run = run
        self.recipe = recipe
        self.track = track
        self.on_step = on_step

    @property
    def options(self) -> Options:
        return self.run.record.options

    # What the steps work on

    @cached_property
    def dense(self) -> nn.Module:
        """The trained model, checked, its attention in ordinary Linears, in eval mode; checkpoints are of the user's own."""
        model = call(self.recipe.model, f"{self.recipe.source}: model()")
        check_dense(model, subject=self.recipe.source)
        if self.options.weights:
            path = Path(self.options.weights)
            load_into(model, read_state(path), source=str(path))
            check_dense(model, subject=str(path))
        return opened(model).eval()

    @cached_property
    def compressed(self) -> nn.Module:
        """The decomposed model with its fine-tuned weights."""
        made = self.plan()
        self.finetune()
        model, _ = decompose(self.dense, made, fit=False)
        load_into(model, load_file(self.run.path("weights.safetensors")), source="weights.safetensors")
        return model.eval()

    def data(self, split: str) -> Any:
        """The recipe's dataset for "train", "eval" or "calibration", or what `--data` gives; None when there is none."""
        if self.options.data:
            kind: datasets.Split = "eval" if split == "eval" else "train"
            return datasets.load(Path(self.options.data), kind, preprocessing=self.recipe.preprocessing, example=self.recipe.example_inputs)
        functions: dict[str, Data | None] = {
            "train": self.recipe.train_data,
            "eval": self.recipe.eval_data,
            "calibration": self.recipe.calibration_data or self.recipe.train_data or self.recipe.eval_data,
        }
        function = functions[split]
        return None if function is None else call(function, f"{self.recipe.source}: {split}_data()")

    @cached_property
    def source(self) -> str:
        """Hash of the dense model and the data options; every step depends on it."""
        shapes = [(tuple(x.shape), str(x.dtype)) for x in self.recipe.example_inputs]
        data = Path(self.options.data) if self.options.data else None
        if data is not None and not data.exists():
            raise ConfigError(f"{data}: no such file or folder; give --data an ImageFolder, an .npz or idx files")
        files = [] if data is None else stamp(data)
        return key(self.recipe.sources_sha256, fingerprint(self.dense), shapes, self.options.data, files)

    # The steps

    def analyze(self) -> records.ModelStats:
        return self._step(
            "analyze",
            key(self.source),
            records.ModelStats,
            lambda: analyze(self.dense, self.recipe.example_inputs, name=self.recipe.name, track=self.track),
        )

    def plan(self) -> CompressionPlan:
        stats, o = self.analyze(), self.options
        unrepaired = (self.recipe.train_data is None and not o.data) or o.epochs == 0
        multiple = TARGETS[o.target].rank_multiple
        fixed, form = fixed_layers(o), method_of(o)

        def make() -> CompressionPlan:
            made = plan(
                self.dense,
                stats,
                macs_ratio=o.macs_ratio,
                allocator=o.allocator,
                method=form.method,
                options=form.options,
                layers=fixed,
                inputs=self._planning_inputs(),
                data_aware=o.data_aware,
                rank_multiple=multiple,
                min_agreement=o.min_agreement if unrepaired else None,
                track=self.track,
            )
            left = tuple(f"{name}: {reason}; its projections stay as they are" for name, reason in closed(self.dense).items())
            return msgspec.structs.replace(made, notes=(*left, *made.notes))

        guard = o.min_agreement if unrepaired else None
        budget = (o.macs_ratio, o.allocator, o.method, sorted(fixed.items()))
        asked = (*budget, o.sensitivity_samples, multiple, guard, o.seed, *self._fitted_to)
        return self._step("plan", key(self.source, asked), CompressionPlan, make)

    def decompose(self) -> records.DecomposeResult:
        made, o = self.plan(), self.options

        def make() -> records.DecomposeResult:
            inputs = self._planning_inputs() if o.data_aware else None
            model, result = decompose(self.dense, made, inputs=inputs, track=self.track)
            save_state(model.state_dict(), self.run.path("decomposed.safetensors"))
            return result

        made_from = key(self.source, self.run.digest("plan"), *self._fitted_to)
        return self._step("decompose", made_from, records.DecomposeResult, make, files=("decomposed.safetensors",))

    def finetune(self) -> records.FinetuneResult:
        self.decompose()
        made, o = self.plan(), self.options

        def make() -> records.FinetuneResult:
            model, _ = decompose(self.dense, made, fit=False)
            load_into(model, load_file(self.run.path("decomposed.safetensors")), source="decomposed.safetensors")
            train = self.data("train")
            asked = FinetuneOptions(
                epochs=o.epochs if made.layers and train is not None else 0,
                samples=o.epoch_samples,
                batch_size=o.batch_size,
                optimizer=o.optimizer,
                learning_rate=o.learning_rate,
                threads=1 if made.macs_before < SMALL_NETWORK else 0,
                seed=o.seed,
            )
            checkpoint = self.run.path(CHECKPOINT)
            model, result = finetune(
                model,
                train if train is not None else self.data("calibration"),
                teacher=self.dense,
                example_inputs=self.recipe.example_inputs,
                eval_data=self.data("eval"),
                options=asked,
                checkpoint_path=checkpoint,
                track=self.track,
            )
            save_state(model.state_dict(), self.run.path("weights.safetensors"))
            checkpoint.unlink(missing_ok=True)
            return result

        asked = (o.epochs, o.epoch_samples, o.batch_size, o.optimizer, o.learning_rate, o.seed)
        made_from = key(self.source, self.run.digest("decompose"), asked)
        return self._step("finetune", made_from, records.FinetuneResult, make, files=("weights.safetensors",))

    # Helpers

    @property
    def _fitted_to(self) -> tuple[Any, ...]:
        """What the factors depend on beside the plan and the weights."""
        o = self.options
        return (("data-aware", o.sensitivity_samples, o.seed),) if o.data_aware else ()

    def _planning_inputs(self) -> Batch | None:
        """Real inputs to measure sensitivities on and to fit to; None where there are none.

        Raises:
            ConfigError: There are none and factors are to be fitted to them.
        """
        data = self.data("calibration")
        if data is None and self.options.data_aware:
            raise ConfigError(f"{self.recipe.source}: no data for --data-aware; add calibration_data(), give --data, or leave it out")
        return None if data is None else self._fetch(data, self.options.sensitivity_samples, labelled=False)[0]

    def _fetch(self, data: Any, n: int, *, drawn: bool = True, labelled: bool) -> tuple[Batch, Tensor | None]:
        seed = self.options.seed if drawn else None
        return datasets.fetch(data, n, seed=seed, example=self.recipe.example_inputs, labelled=labelled)

    def _step(self, name: str, made_from: str, kind: type[R], make: Callable[[], R], *, files: tuple[str, ...] = ()) -> R:
        path = self.run.path(FILES[name])
        if self.run.is_done(name, made_from):
            record = read(path, kind)
            self._told(name, record, self.run.record.steps[name].seconds, True)
            return record
        with stopwatch() as spent:
            record = make()
        write_atomic(path, to_json(record))
        self.run.finish(name, made_from, (path.name, *files), spent[0])
        self._told(name, record, spent[0], False)
        return record

    def _told(self, name: str, record: Record, seconds: float, reused: bool) -> None:
        """Tell of each step once, however often later steps ask for it."""
        told: set[str] = self.__dict__.setdefault("told", set())
        if name not in told:
            told.add(name)
            self.on_step(name, record, seconds, reused)
