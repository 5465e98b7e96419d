"""How far one model's outputs are from another's: the loss that plans, fine-tuning and reports share."""

from torch import Tensor
from torch.nn import functional as F


def is_scores(outputs: Tensor) -> bool:
    """Whether outputs are one vector of class scores a sample, `(n, classes)`."""
    return outputs.ndim == 2 and outputs.shape[1] > 1


def divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return T²·KL(teacher ‖ student) in nats a sample for class scores, and the error power over the signal power for anything else.

    References:
        G. Hinton, O. Vinyals, J. Dean. Distilling the Knowledge in a Neural Network. 2015, section 2.
    """
    if not is_scores(teacher):
        return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)
    p = F.log_softmax(teacher / temperature, 1)
    q = F.log_softmax(student / temperature, 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2


def agreement(outputs: Tensor, reference: Tensor) -> float | None:
    """Return the fraction of samples with the same arg-max; None when the outputs are no scores."""
    return float((outputs.argmax(1) == reference.argmax(1)).double().mean()) if is_scores(reference) else None


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Return the fraction of samples whose arg-max is the label."""
    return float((outputs.argmax(1) == labels).double().mean())
