"""Class scores among a network's outputs, and the divergence between two networks: the loss of planning and training."""

from torch import Tensor

from edgecompress.network.batches import Batch
from edgecompress.network.output_kinds import KINDS, guess_specs
from edgecompress.records.outputs import OutputSpec

Specs = tuple[OutputSpec, ...]


def is_scores(output: Tensor) -> bool:
    """Whether an output of unknown kind may be a vector of class scores a sample, `(n, classes)`."""
    return output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()


def scores_of(outputs: Batch, specs: Specs | None = None) -> Tensor | None:
    """Return the one output that holds a vector of class scores a sample; None if no output does, or more than one."""
    kinds = specs or guess_specs(outputs)
    found = [y for y, spec in zip(outputs, kinds, strict=True) if is_scores(y) and KINDS[spec.kind].has_classes]
    return found[0] if len(found) == 1 else None


def divergence(student: Batch, teacher: Batch, *, specs: Specs | None = None, temperature: float = 1.0) -> Tensor:
    """Return the sum of the outputs' divergences, each by its kind: T²·KL(teacher ‖ student) in nats for class scores.

    Args:
        specs: The kinds of the outputs; None guesses them from the shapes.

    References:
        G. Hinton, O. Vinyals, J. Dean. Distilling the Knowledge in a Neural Network. 2015, section 2.
    """
    kinds = specs or guess_specs(teacher)
    pairs = zip(student, teacher, kinds, strict=True)
    losses = [KINDS[spec.kind].divergence(y, wanted, spec, temperature) for y, wanted, spec in pairs]
    return sum(losses[1:], losses[0])


def top1(scores: Tensor, labels: Tensor) -> float:
    """Return the fraction of samples whose arg-max is the label."""
    return float((scores.argmax(1) == labels).double().mean())
