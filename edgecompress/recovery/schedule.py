"""Loss, learning-rate schedule and order of samples of every kind of training."""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompress.network.batches import Batch
from edgecompress.network.outputs import divergence, scores_of

WARM_UP: Final = 0.15  # fraction of all epochs in which the rate rises to its peak; momentum starts without a history of gradients


def distillation_loss(outputs: Batch, wanted: Batch, labels: Tensor | None, *, temperature: float, distill: float) -> Tensor:
    """Return the divergence from the teacher's outputs; with labels of class scores, a fraction 1 − `distill` of it is cross-entropy."""
    loss = divergence(outputs, wanted, temperature=temperature)
    scores = scores_of(outputs)
    return loss if labels is None or scores is None else distill * loss + (1 - distill) * F.cross_entropy(scores, labels)


def learning_rate_fraction(done: float) -> float:
    """Return the learning rate over its peak once the fraction `done` of training is over: linear warm-up, then half a cosine to zero."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def shuffled_batches(total: int, samples: int, batch_size: int) -> list[list[int]]:
    """Return the indices of an epoch's samples in batches, drawn and ordered by torch's generator.

    A last batch of one sample is left out, because BatchNorm cannot normalise it.
    """
    order = chunks(torch.randperm(total)[:samples].tolist(), batch_size)
    return order[:-1] if len(order) > 1 and len(order[-1]) == 1 else order


def chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    """Return the indices in order, in lists of `size`; the last list may be shorter."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch, so that a resumed run draws the same samples as an uninterrupted one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")
