"""Number the classes of named data as the network does: class folders are in alphabetical order, a network's labels may not be."""

from collections.abc import Sequence

import torch

from edgecompress.data.samples import Samples
from edgecompress.errors import ConfigError


def map_classes(theirs: Sequence[str], ours: Sequence[str], subject: str) -> tuple[int, ...]:
    """Return the network's class of each class of the data; () where both are numbered alike, or where no name is known to both.

    Args:
        theirs: Names of the data's classes, in the order of their labels.
        ours: Names of the network's classes.
        subject: Names the network or the file in the message.

    Raises:
        ConfigError: Some classes of the data are among the network's, and one is not.
    """
    theirs, ours = tuple(theirs), tuple(ours)
    if theirs == ours[: len(theirs)] or not set(theirs) & set(ours):
        return ()
    if unknown := sorted(set(theirs) - set(ours)):
        raise ConfigError(
            f"{subject}: class {unknown[0]!r} of the data is not among its labels ({', '.join(ours[:12])}); name it as they do"
        )
    return tuple(ours.index(name) for name in theirs)


def renumber_classes(samples: Samples, names: Sequence[str], subject: str) -> Samples:
    """Return samples whose labels are those of a network with classes of these names; the samples themselves where nothing changes.

    Raises:
        ConfigError: See `map_classes`.
    """
    classes = map_classes(samples.class_names, names, subject)
    if not classes or samples.labels is None:
        return samples
    labels = torch.tensor(classes)[samples.labels]
    return Samples(samples.inputs, labels, source=samples.source, class_names=tuple(names), transform=samples.transform)
