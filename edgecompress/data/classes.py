"""Number the classes of named data as the network does: the one place that decides what labels mean, for every command."""

import re
from collections.abc import Sequence
from typing import Final, TypeVar

import torch

from edgecompress.data.samples import Samples
from edgecompress.errors import ConfigError

D = TypeVar("D")
SHOWN_CLASSES: Final = 5


def number_classes(dataset: D, names: Sequence[str], subject: str) -> D | Samples:
    """Return samples whose labels are those of a network with classes of these names.

    Class folders are numbered in the order of their names as text, as torchvision does; a network's labels may have any order. A dataset
    that names no classes is returned as it is: its labels are the network's. Where names decide nothing, the notes say what was taken.

    Args:
        names: The network's classes in the order of its outputs; () where the user names none.
        subject: Names the network or the file in the message.

    Raises:
        ConfigError: See `map_classes`.
    """
    if not isinstance(dataset, Samples) or dataset.labels is None or not dataset.class_names:
        return dataset
    theirs = dataset.class_names
    classes = map_classes(theirs, names, subject)
    labels, known, notes = dataset.labels, theirs, dataset.notes
    if classes:
        labels, known = torch.tensor(classes)[labels], tuple(names)
    elif names and not _share_names(theirs, names):
        order = ", ".join(theirs[:SHOWN_CLASSES])
        notes = (*notes, f"the class folders ({order}, …) have other names than the labels; they were taken in the order of their names")
    elif not names and is_numbered_otherwise(theirs):
        order = ", ".join(theirs[:SHOWN_CLASSES])
        notes = (
            *notes,
            f"numbered class folders were taken in the order of their names as text ({order}, …); labels() gives another order",
        )
    else:
        return dataset
    return Samples(dataset.inputs, labels, source=dataset.source, class_names=known, transform=dataset.transform, notes=notes)


def map_classes(theirs: Sequence[str], ours: Sequence[str], subject: str) -> tuple[int, ...]:
    """Return the network's class of each class of the data; () where both are numbered alike, or where no name is known to both.

    Names are compared without regard to case, to spaces, underscores and hyphens, and to zeros before a number, where they stay distinct.

    Args:
        theirs: Names of the data's classes, in the order of their labels.
        ours: Names of the network's classes.
        subject: Names the network or the file in the message.

    Raises:
        ConfigError: Some classes of the data are among the network's, and one is not.
    """
    given = tuple(theirs)
    theirs, known = _simplify(theirs, ours)
    if theirs == known[: len(theirs)] or not set(theirs) & set(known):
        return ()
    if unknown := sorted(name for name, simple in zip(given, theirs, strict=True) if simple not in known):
        raise ConfigError(
            f"{subject}: class {unknown[0]!r} of the data is not among its labels ({', '.join(ours[:12])}); name it as they do"
        )
    return tuple(known.index(name) for name in theirs)


def is_numbered_otherwise(names: Sequence[str]) -> bool:
    """Whether names are numbers whose order differs from their order as text: 10 stands before 2."""
    return all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names)


def _share_names(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    one, other = _simplify(theirs, ours)
    return bool(set(one) & set(other))


def _simplify(theirs: Sequence[str], ours: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return both lists of names in a simple spelling; as they are where two of one list would become one."""
    simple = tuple(map(_simplify_name, theirs)), tuple(map(_simplify_name, ours))
    distinct = all(len(set(short)) == len(set(names)) for short, names in zip(simple, (theirs, ours), strict=True))
    return simple if distinct else (tuple(theirs), tuple(ours))


def _simplify_name(name: str) -> str:
    return str(int(name)) if name.isdecimal() else re.sub(r"[\s_-]+", " ", name.strip().casefold())
