"""Read which split a name tells, and split data that have no splits, so that no sample is used for both training and evaluation."""

import re
from collections.abc import Sequence
from typing import Final, TypeVar

from edgecompress.errors import ConfigError

T = TypeVar("T")
FOLD = 5  # A fifth of the samples leaves enough for training and a top-1 that is steady enough.
HELD_OUT = {"train": f"without every {FOLD}th, which is held out", "eval": f"every {FOLD}th, held out of training"}
# Names of a split's folder in any case, best first: of two held-out sets the one that chose nothing is scored.
SPLITS: Final = {
    "train": ("train", "training", "trn"),
    "eval": ("test", "testing", "tst", "val", "valid", "validation", "validate", "eval", "evaluation", "dev", "holdout"),
}
FILLERS: Final = {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "seg"}  # beside a split's name: `train_images`


def read_split_name(name: str) -> tuple[str, int] | None:
    """Return the split that a folder is named after, and the rank of the name; None for any other name."""
    words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word and word not in FILLERS]
    if len(words) != 1:
        return None
    forms = {words[0], words[0].removesuffix("set"), words[0].removesuffix("data")}
    return next(((split, rank) for split, names in SPLITS.items() for rank, each in enumerate(names) if each in forms), None)


def select_split(items: Sequence[T], split: str, subject: str) -> list[T]:
    """Return every fifth item for "eval" and the others for "train"; items sorted by class give each class its share in both.

    Raises:
        ConfigError: Too few items to hold any out.
    """
    if len(items) < FOLD:
        raise ConfigError(f"{subject}: {len(items)} samples; give at least {FOLD}, or separate train and test sets")
    return [item for index, item in enumerate(items) if (index % FOLD == FOLD - 1) == (split == "eval")]
