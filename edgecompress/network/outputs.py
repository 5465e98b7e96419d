"""Class scores among a network's outputs, and the divergence between two networks: the loss of planning and training."""

from torch import Tensor
from torch.nn import functional as F

from edgecompress.network.batches import Batch


def is_scores(output: Tensor) -> bool:
    """Whether an output is one vector of class scores a sample, `(n, classes)`."""
    return output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()


def scores_of(outputs: Batch) -> Tensor | None:
    """Return the one output that holds class scores; None if no output does, or more than one."""
    found = [y for y in outputs if is_scores(y)]
    return found[0] if len(found) == 1 else None


def divergence(student: Batch, teacher: Batch, *, temperature: float = 1.0) -> Tensor:
    """Return the sum over outputs of T²·KL(teacher ‖ student), in nats a sample, for scores, and of error over signal power for others.

    References:
        G. Hinton, O. Vinyals, J. Dean. Distilling the Knowledge in a Neural Network. 2015, section 2.
    """
    losses = [_output_divergence(y, wanted, temperature) for y, wanted in zip(student, teacher, strict=True)]
    return sum(losses[1:], losses[0])


def _output_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if not is_scores(teacher):
        student, teacher = student.float(), teacher.float()
        return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)
    p = F.log_softmax(teacher / temperature, 1)
    q = F.log_softmax(student / temperature, 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2


def top1(scores: Tensor, labels: Tensor) -> float:
    """Return the fraction of samples whose arg-max is the label."""
    return float((scores.argmax(1) == labels).double().mean())
