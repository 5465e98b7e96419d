"""What every step that trains shares: the loss, the schedule, and an order of samples that a resumed run draws again."""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompress.network.batches import Batch
from edgecompress.network.outputs import divergence, scores_of

WARM_UP: Final = 0.15  # of all epochs
MAX_GRAD_NORM: Final = 1.0  # gradient; the error of an output of small numbers is over a small power, and steep


def distillation_loss(outputs: Batch, wanted: Batch, labels: Tensor | None, *, temperature: float, distill: float) -> Tensor:
    """Return the divergence from the teacher, and where there are labels of scores a share 1 − `distill` of cross-entropy with them."""
    loss = divergence(outputs, wanted, temperature=temperature)
    scores = scores_of(outputs)
    return loss if labels is None or scores is None else distill * loss + (1 - distill) * F.cross_entropy(scores, labels)


def learning_rate_fraction(done: float) -> float:
    """Share of the peak learning rate when the fraction `done` of the training is over: linear warm-up, then half a cosine to zero."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def shuffled_batches(total: int, samples: int, batch_size: int) -> list[list[int]]:
    """This epoch's samples in this epoch's order, both drawn from torch's seeded generator; a last batch of one would break BatchNorm."""
    orders = chunks(torch.randperm(total)[:samples].tolist(), batch_size)
    return orders[:-1] if len(orders) > 1 and len(orders[-1]) == 1 else orders


def chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch, so that a resumed run draws what the uninterrupted one would have."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")
