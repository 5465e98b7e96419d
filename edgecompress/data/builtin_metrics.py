"""The metrics that need no function of the user's: top-1 of class scores, mean intersection over union of class maps."""

from typing import Any, Final

import torch
from torch import Tensor

from edgecompress.data.targets import check_labels
from edgecompress.errors import ConfigError
from edgecompress.network.batches import flatten_structure

IGNORED_LABEL: Final = 255  # marks unlabelled pixels in the common segmentation sets, as negative labels do


class Top1:
    """Fraction of the samples whose highest score is that of their label."""

    def __init__(self, output: int = 0, axis: int = 1) -> None:
        self.output = output
        self.axis = axis
        self.right = 0
        self.samples = 0

    def update(self, outputs: Any, targets: Any, /) -> None:
        answers = _answers(outputs, self.output, self.axis)
        self.right += int((answers == check_labels(targets, "targets")).sum())
        self.samples += len(answers)

    def compute(self) -> dict[str, float]:
        return {"top-1": self.right / self.samples}


class MeanIoU:
    """Intersection over union of each class that the targets hold, over all pixels of all samples, averaged over these classes.

    Pixels with a negative label are ignored, and those labelled 255 where the network has no such class.
    """

    def __init__(self, output: int = 0, axis: int = 1) -> None:
        self.output = output
        self.axis = axis
        self.counts = torch.zeros(3, 0, dtype=torch.int64)  # pixels of each class: answered and labelled, answered, labelled

    def update(self, outputs: Any, targets: Any, /) -> None:
        answers = _answers(outputs, self.output, self.axis)
        scores = flatten_structure(outputs)[self.output]
        classes = scores.shape[self.axis] if scores.is_floating_point() else None
        labels = _check_map(targets, answers)
        kept = labels >= 0
        if classes is None or classes <= IGNORED_LABEL:
            kept &= labels != IGNORED_LABEL
        answers, labels = answers[kept], labels[kept]
        if classes is not None and labels.numel() and int(labels.max()) >= classes:
            raise ConfigError(f"targets: label {int(labels.max())} in a map of {classes} classes; give 0 … {classes - 1}, or 255 for none")
        size = max(self.counts.shape[1], *(int(x.max()) + 1 if x.numel() else 0 for x in (answers, labels)))
        counted = torch.stack([torch.bincount(x, minlength=size) for x in (labels[answers == labels], answers, labels)])
        counted[:, : self.counts.shape[1]] += self.counts
        self.counts = counted

    def compute(self) -> dict[str, float]:
        both, answered, labelled = self.counts.double()
        held = labelled > 0
        if not bool(held.any()):
            raise ConfigError("targets: no pixel has a label; give class indices from 0")
        return {"mIoU": float((both[held] / (answered + labelled - both)[held]).mean())}


def _answers(outputs: Any, output: int, axis: int) -> Tensor:
    """Return the class of each sample or pixel; an output of integers holds classes already."""
    y = flatten_structure(outputs)[output]
    return y.argmax(axis) if y.is_floating_point() else y.long()


def _check_map(targets: Any, answers: Tensor) -> Tensor:
    """Return labels of the shape of the answers as int64.

    Raises:
        ConfigError: They are no integers or have another shape.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        found = str(targets.dtype).removeprefix("torch.") if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise ConfigError(f"targets: {found}, the output is a class map; give maps of integers of one size, or define metric()")
    labels = targets.squeeze(1) if targets.ndim == answers.ndim + 1 and targets.shape[1] == 1 else targets
    if labels.shape != answers.shape:
        shapes = f"{tuple(labels.shape[1:])}, the output's {tuple(answers.shape[1:])}"
        raise ConfigError(f"targets: the shape of a map is {shapes}; resize them, or define metric()")
    return labels.long()


METRICS: Final[dict[str, type[Top1] | type[MeanIoU]]] = {"top-1": Top1, "mIoU": MeanIoU}
