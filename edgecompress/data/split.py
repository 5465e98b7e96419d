"""Split data that have no splits, so that no sample is used for both training and evaluation."""

from collections.abc import Sequence
from typing import TypeVar

from edgecompress.errors import ConfigError

T = TypeVar("T")
FOLD = 5  # A fifth of the samples leaves enough for training and a top-1 that is steady enough.
HELD_OUT = {"train": f"without every {FOLD}th, which is held out", "eval": f"every {FOLD}th, held out of training"}


def select_split(items: Sequence[T], split: str, subject: str) -> list[T]:
    """Return every fifth item for "eval" and the others for "train"; items sorted by class give each class its share in both.

    Raises:
        ConfigError: Too few items to hold any out.
    """
    if len(items) < FOLD:
        raise ConfigError(f"{subject}: {len(items)} samples; give at least {FOLD}, or separate train and test sets")
    return [item for index, item in enumerate(items) if (index % FOLD == FOLD - 1) == (split == "eval")]
