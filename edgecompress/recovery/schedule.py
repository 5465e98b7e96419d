"""Learning-rate schedule and order of samples of every kind of training."""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import torch

WARM_UP: Final = 0.15  # fraction of all epochs in which the rate rises to its peak; momentum starts without a history of gradients


def learning_rate_fraction(done: float) -> float:
    """Return the learning rate over its peak once the fraction `done` of training is over: linear warm-up, then half a cosine to zero.

    The rate never rises again after the warm-up: a restart would undo the repair that training has made so far.
    """
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def shuffled_batches(indices: Sequence[int], samples: int, batch_size: int) -> list[list[int]]:
    """Return an epoch's samples in batches, drawn from `indices` and ordered by torch's generator.

    A last batch of one sample is left out, because BatchNorm cannot normalise it.
    """
    order = chunks([indices[i] for i in torch.randperm(len(indices))[:samples].tolist()], batch_size)
    return order[:-1] if len(order) > 1 and len(order[-1]) == 1 else order


def chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    """Return the indices in order, in lists of `size`; the last list may be shorter."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def epoch_seed(seed: int, epoch: int | str) -> int:
    """Return the seed of one epoch, so that a resumed run draws the same samples as an uninterrupted one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")
