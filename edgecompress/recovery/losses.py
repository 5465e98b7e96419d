"""The loss of training: the divergence from the teacher by the kind of each output, and a smaller part by the targets."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompress.data import Targets, check_labels, is_class_index, take_targets
from edgecompress.data.losses import Loss, check_loss
from edgecompress.network.batches import Batch, Structure, take_samples
from edgecompress.network.output_kinds import MIN_LOG, class_axis, guess_specs, to_logits, to_probabilities
from edgecompress.network.outputs import Specs, divergence
from edgecompress.records.outputs import OutputSpec

CHECK_SAMPLES: Final = 8  # that the user's loss is tried on
TargetLoss = Callable[[Batch, Batch, Targets], "Tensor | None"]
"""Loss by the targets of a batch: (outputs, the teacher's outputs, targets) → a scalar, or None where the targets fit no output."""


def distillation_loss(
    outputs: Batch,
    wanted: Batch,
    targets: Targets | None,
    *,
    specs: Specs | None,
    target_loss: TargetLoss | None,
    temperature: float,
    distill: float,
) -> Tensor:
    """Return the divergence from the teacher's outputs; a fraction 1 − `distill` of the loss is `target_loss` where there are targets.

    Args:
        specs: The kinds of the outputs; None guesses them from the shapes.
    """
    loss = divergence(outputs, wanted, specs=specs, temperature=temperature)
    part = None if targets is None or target_loss is None else target_loss(outputs, wanted, targets)
    return loss if part is None else distill * loss + (1 - distill) * part


def label_loss(outputs: Batch, wanted: Batch, targets: Targets, *, specs: Specs | None = None, source: str = "labels") -> Tensor | None:
    """Return the loss of the one output that labels can be for, by its kind; None where targets are no labels of it.

    Logits and class maps have cross-entropy, probabilities the negative logarithm of the label's, independent events binary cross-entropy
    with targets of the output's shape. Labels of a class map that are negative or no class (often 255) do not count.

    Args:
        source: Begins the message about a label beyond the classes.

    Raises:
        ConfigError: The label of a sample is no class.
    """
    kinds = specs or guess_specs(wanted)
    labelled = [pair for pair in zip(outputs, wanted, kinds, strict=True) if pair[2].kind in LABEL_LOSSES]
    if len(labelled) != 1:
        return None
    output, reference, spec = labelled[0]
    return LABEL_LOSSES[spec.kind](output, reference, targets, spec, source)


def use_loss(loss: Loss, wanted: Batch, targets: Targets | None, structure: Structure) -> tuple[TargetLoss | None, str]:
    """Return the user's loss, checked, and a remark; None where the data have no targets.

    Args:
        wanted, targets: The dense network's outputs for some samples, and their targets.
        structure: In which the loss gets the outputs.

    Raises:
        ConfigError: The loss raises, is no finite scalar, or has no gradient.
    """
    if targets is None:
        return None, f"{loss.place} was not used, since the training data have no targets"
    few = slice(CHECK_SAMPLES)
    check_loss(loss, take_samples(wanted, few), take_targets(targets, few), structure)
    return (lambda outputs, _, given: loss(outputs, given, structure)), ""


def choose_target_loss(wanted: Batch, targets: Targets | None, specs: Specs, source: str) -> tuple[TargetLoss | None, str]:
    """Return the loss by labels, and a remark; None where the data have no labels of an output, or not those that the network knows.

    Args:
        wanted, targets: The dense network's outputs for some samples, and their targets.
        source: Names the data in messages.
    """
    if targets is None or label_loss(wanted, wanted, targets, specs=specs, source=source) is None:
        return None, ""
    if not labels_inform(wanted, targets, specs=specs):
        return None, f"{source}: labels were not used, since the dense network predicts them worse than a guess does"
    return partial(label_loss, specs=specs, source=source), ""


@torch.no_grad()
def labels_inform(wanted: Batch, targets: Targets, *, specs: Specs | None = None) -> bool:
    """Whether the dense network predicts labels better than a uniform guess; labels of other classes than its own it does not."""
    found = label_loss(wanted, wanted, targets, specs=specs)
    guesses = tuple(
        torch.full_like(y, 0.5 if spec.kind == "independent" else 0.0) for y, spec in zip(wanted, specs or guess_specs(wanted), strict=True)
    )
    guessed = label_loss(guesses, guesses, targets, specs=specs)
    return found is not None and guessed is not None and float(found) < float(guessed)


def _class_loss(output: Tensor, _: Tensor, targets: Targets, spec: OutputSpec, source: str) -> Tensor | None:
    if not output.is_floating_point():
        return None
    scores = to_logits(output, spec).movedim(class_axis(spec), 1)  # (n, classes, …); the logarithm of probabilities is normalised anew
    classes = scores.shape[1]
    if scores.ndim == 2:
        return F.cross_entropy(scores, check_labels(targets, source, classes=classes)) if is_class_index(targets) else None
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        return None
    labels = targets.squeeze(1) if targets.ndim == scores.ndim and targets.shape[1] == 1 else targets
    if labels.shape != (scores.shape[0], *scores.shape[2:]):
        return None
    labels = labels.long()
    counted = (labels >= 0) & (labels < classes)
    total = F.cross_entropy(scores, labels.masked_fill(~counted, -100), reduction="sum", ignore_index=-100)
    return total / counted.sum().clamp_min(1)


def _event_loss(output: Tensor, reference: Tensor, targets: Targets, _: OutputSpec, __: str) -> Tensor | None:
    """Return the binary cross-entropy in nats a sample, summed over events, as their divergence is."""
    if not isinstance(targets, Tensor) or targets.is_complex() or targets.shape != output.shape:
        return None
    events = targets.float()
    if not bool(((events >= 0) & (events <= 1)).all()):
        return None
    p = to_probabilities(output, reference).clamp(MIN_LOG, 1 - MIN_LOG)
    return F.binary_cross_entropy(p, events, reduction="sum") / len(output)


LABEL_LOSSES: Final[dict[str, Callable[[Tensor, Tensor, Any, OutputSpec, str], "Tensor | None"]]] = {
    "logits": _class_loss,
    "probabilities": _class_loss,
    "class_map": _class_loss,
    "independent": _event_loss,
}
