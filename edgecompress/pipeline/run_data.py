"""The datasets of a run, what they hold, and samples of them."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from edgecompress import data as datasets
from edgecompress.data.classes import number_classes
from edgecompress.data.content import digest_dataset, fixed_random_numbers
from edgecompress.data.dataloaders import take_dataset
from edgecompress.data.recipe import Recipe
from edgecompress.data.targets import Targets
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import call_user_function
from edgecompress.network.batches import Batch

TARGET_SAMPLES: Final = 64  # data are often sorted by class, so that the first few would show one class alone
# What the data of a step are, and the recipe's functions that give them, the first one that it has.
SPLITS: Final = {
    "train": ("train",),
    "eval": ("eval",),
    "calibration": ("calibration", "train", "eval"),
    "recovery": ("train", "calibration", "eval"),
    "evidence": ("eval", "calibration", "train"),
}


class RunData:
    """The datasets of a run: the recipe's, or those at the path of `--data`; each one is made once, since that may take minutes."""

    def __init__(self, recipe: Recipe, *, path: str = "", seed: int = 0) -> None:
        self.recipe = recipe
        self.path = path
        self.seed = seed
        self._datasets: dict[str, Any] = {}
        self._digests: dict[tuple[str, bool], str] = {}

    def has_split(self, split: str) -> bool:
        """Whether a split has data of its own: a function of its name, or the two splits at a path."""
        return split in ("train", "eval") if self.path else getattr(self.recipe, f"{split}_data") is not None

    def dataset(self, split: str) -> Any:
        """Return the dataset of a split of SPLITS; None when the user gave none."""
        kind: datasets.Split = "eval" if SPLITS[split][0] == "eval" else "train"
        name = kind if self.path else self._choose_function(split)
        if name and name not in self._datasets:
            self._datasets[name] = self._load_split(kind) if self.path else self._call_function(name)
        return self._datasets[name] if name else None

    def _load_split(self, kind: datasets.Split) -> Any:
        found = datasets.load_data(Path(self.path), kind, preprocessing=self.recipe.preprocessing, example=self.recipe.example_inputs)
        return number_classes(found, self.recipe.labels, self.recipe.source)

    def _call_function(self, name: str) -> Any:
        with fixed_random_numbers():  # a set that the function draws is the same one for every process
            found = call_user_function(getattr(self.recipe, name), f"{name}()", self.recipe.source)
        found = number_classes(take_dataset(found, f"{self.recipe.source}: {name}()"), self.recipe.labels, self.recipe.source)
        datasets.remember_function(found, name)
        return found

    def digest(self, split: str, *, with_inputs: bool = True) -> str:
        """Return a hash of what the dataset of a split holds, computed once; "" for none, and for data at a path, whose files tell."""
        name = "" if self.path else self._choose_function(split)
        if name and (name, with_inputs) not in self._digests:
            self._digests[name, with_inputs] = digest_dataset(self.dataset(split), with_inputs=with_inputs)
        return self._digests[name, with_inputs] if name else ""

    def _choose_function(self, split: str) -> str:
        """Return the name of the recipe's function whose data stand for a split; "" where there is none."""
        names = (f"{name}_data" for name in SPLITS[split])
        return next((name for name in names if getattr(self.recipe, name) is not None), "")

    def read_notes(self) -> tuple[str, ...]:
        """Return how the datasets made so far were read, and those at a path, where that needs saying; each text once.

        Raises:
            ConfigError: The data at the path cannot be used.
        """
        for split in ("train", "eval") if self.path else ():
            self.dataset(split)
        return self.notes

    @property
    def notes(self) -> tuple[str, ...]:
        """How the datasets made so far were read, where that needs saying; each text once."""
        return tuple(dict.fromkeys(note for found in self._datasets.values() for note in getattr(found, "notes", ())))

    def sample_targets(self) -> Targets | None:
        """Return the targets of a few samples from everywhere in the data, which tell what outputs are; None where they tell nothing."""
        for split in ("eval", "train"):
            with suppress(ConfigError):  # a step that reads the data explains them; targets of any kind are allowed where nothing does
                dataset = self.dataset(split)
                n = datasets.count_items(dataset) if hasattr(dataset, "__len__") else 0
                rows = sorted({round(i * (n - 1) / (TARGET_SAMPLES - 1)) for i in range(TARGET_SAMPLES)}) if n else []
                _, targets = datasets.fetch_items(dataset, rows, example=self.recipe.example_inputs)
                if targets:
                    return datasets.collate_targets(targets, datasets.describe_dataset(dataset))
        return None

    def fetch(self, dataset: Any, samples: int, *, shuffle: bool = True, labelled: bool) -> tuple[Batch, Tensor | None]:
        """Return at most so many inputs with their labels, drawn with the seed of the run or, without `shuffle`, the first ones."""
        seed = self.seed if shuffle else None
        return datasets.fetch_samples(dataset, samples, seed=seed, example=self.recipe.example_inputs, labelled=labelled)

    @property
    def can_train(self) -> bool:
        """Whether there is anything to fine-tune on."""
        return self.recipe.train_data is not None or bool(self.path)
