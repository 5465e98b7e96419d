"""How a set that comes as one is parted, so that nothing is evaluated on what it was trained on."""

from collections.abc import Sequence
from typing import TypeVar

from edgecompress.errors import ConfigError

T = TypeVar("T")
FOLD = 5
HELD_OUT = {"train": f"without every {FOLD}th, which is held out", "eval": f"every {FOLD}th, held out of training"}


def select_split(items: Sequence[T], split: str, subject: str) -> list[T]:
    """Return every fifth item for "eval" and the others for "train"; with items sorted by class, each class is parted alike.

    Raises:
        ConfigError: Too few to hold any out.
    """
    if len(items) < FOLD:
        raise ConfigError(f"{subject}: {len(items)} samples; give at least {FOLD}, or separate train and test sets")
    return [item for index, item in enumerate(items) if (index % FOLD == FOLD - 1) == (split == "eval")]
