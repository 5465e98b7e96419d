"""Find the learning rate of a training: a short range test on the network itself, which is put back afterwards.

Rates are tried from the usual one downwards, each for a few steps from the same start on the same batches, and the first one that brings
the network nearer to the dense one on validation samples is taken: the highest rate that does not undo the repair.

References:
    L. N. Smith. Cyclical Learning Rates for Training Neural Networks. WACV 2017, section 3.3: the range test. It raises the rate within one
        run and reads the training loss. Runs from one start are compared here, because a momentum that was built up at low rates hides what
        a rate does, and the loss in training mode does not show the harm done to BatchNorm statistics.
"""

import copy
import math
from collections.abc import Callable
from typing import Final

import torch

from edgecompress.recovery.checkpoint import copy_state
from edgecompress.recovery.loop import LoopOptions, NotFiniteError, TrainingTask, train_batches
from edgecompress.recovery.schedule import epoch_seed, shuffled_batches

FRACTIONS: Final = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the usual rate; lower ones hardly train at all
MIN_STEPS: Final = 12  # momentum has built up after ten
MAX_STEPS: Final = 32
TEST_FRACTION: Final = 0.05  # of all training steps that one rate is tried for
WARM_UP_STEPS: Final = 4


def find_learning_rate(
    task: TrainingTask, options: LoopOptions, usual: float, start: float, measure: Callable[[], float | None]
) -> tuple[float, str]:
    """Return the highest fraction of the usual rate that improves the network, and the finding in words.

    Args:
        start: Divergence from the dense network on validation samples before training.
        measure: Returns that divergence for the network as it is; None where its outputs are not finite.
    """
    state, optimizer_state = copy_state(task.model), copy.deepcopy(task.optimizer.state_dict())
    refused = []
    for fraction in FRACTIONS:
        rate = usual * fraction
        torch.manual_seed(epoch_seed(options.seed, "learning rate"))
        reached = _try_rate(task, options, rate, measure)
        task.model.load_state_dict(state)
        task.optimizer.load_state_dict(copy.deepcopy(optimizer_state))
        if reached < start:
            break
        refused.append(f"{rate:g}")
    else:
        return rate, f"the lowest of those tried, none of which improved the network in a short test ({', '.join(refused)})"
    if not refused:
        return rate, "the usual one, which improved the network in a short test"
    return rate, f"the highest that improved the network in a short test; {', '.join(refused)} made it worse"


def _try_rate(task: TrainingTask, options: LoopOptions, rate: float, measure: Callable[[], float | None]) -> float:
    """Train for some steps; return the divergence from the dense network, infinity where the loss or the outputs are not finite."""
    order = shuffled_batches(task.indices, options.samples, options.batch_size)
    steps = min(MAX_STEPS, max(MIN_STEPS, math.ceil(TEST_FRACTION * options.epochs * len(order))))
    while len(order) < steps:
        order += shuffled_batches(task.indices, options.samples, options.batch_size)
    try:
        train_batches(task, options, order[:steps], lambda step: rate * min(1.0, (step + 1) / WARM_UP_STEPS), f"a test of {rate:g}")
    except NotFiniteError:
        return math.inf
    found = measure()
    return math.inf if found is None else found
