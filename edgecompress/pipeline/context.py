"""What the steps of a run share: its folder, its recipe with the dense network and the data, and how a step is done once and reused."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from edgecompress import data as datasets
from edgecompress.data.recipe import Data, Recipe, at_resolution, call
from edgecompress.errors import ConfigError
from edgecompress.files import stamp, write_atomic
from edgecompress.network.attention import opened
from edgecompress.network.batches import Batch
from edgecompress.network.weights import check_dense, fingerprint, load_into, read_state
from edgecompress.options import Options
from edgecompress.progress import Track, silent
from edgecompress.records import Record, read, to_json
from edgecompress.runs import Run, file_of, key, stopwatch

R = TypeVar("R", bound=Record)
OnStep = Callable[[str, Record, float, bool], None]


def ignore(*_: object) -> None:
    """Nobody wants to know."""


class RunSteps:
    """One run folder and its recipe.

    Args:
        on_step: Called after each step with its name, record, seconds, and whether it was reused.
    """

    def __init__(self, run: Run, recipe: Recipe, *, track: Track = silent, on_step: OnStep = ignore) -> None:
        self.run = run
        self._recipe = recipe
        self.track = track
        self.on_step = on_step

    @property
    def options(self) -> Options:
        return self.run.record.options

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe at the resolution of the run."""
        return at_resolution(self._recipe, self.options.resolution)

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

    def _fetch(self, data: Any, n: int, *, drawn: bool = True, labelled: bool) -> tuple[Batch, Tensor | None]:
        seed = self.options.seed if drawn else None
        return datasets.fetch(data, n, seed=seed, example=self.recipe.example_inputs, labelled=labelled)

    def _step(self, name: str, made_from: str, kind: type[R], make: Callable[[], R], *, files: tuple[str, ...] = ()) -> R:
        path = self.run.path(file_of(name))
        if self.run.is_done(name, made_from):
            record = read(path, kind)
            self._told(name, record, self.run.record.steps[name].seconds, True)
            return record
        with stopwatch() as spent:
            record = make()
        write_atomic(path, to_json(record))
        self.run.finish(name, made_from, (file_of(name), *files), spent[0])
        self._told(name, record, spent[0], False)
        return record

    def _told(self, name: str, record: Record, seconds: float, reused: bool) -> None:
        """Tell of each step once, however often later steps ask for it."""
        told: set[str] = self.__dict__.setdefault("told", set())
        if name not in told:
            told.add(name)
            self.on_step(name, record, seconds, reused)
