"""Compare the speed of modules on this machine by runs in turns, so that other load slows all of them."""

import statistics
import time
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

WARMUP_ROUNDS: Final = 3  # the first rounds choose kernels and fill caches


@torch.inference_mode()
def median_ms(modules: Sequence[nn.Module], x: Tensor, *, repetitions: int = 31) -> list[float]:
    """Return the median milliseconds of each module on `x`, run eagerly with the current number of torch threads."""
    samples: list[list[float]] = [[] for _ in modules]
    for _ in range(WARMUP_ROUNDS + repetitions):
        for module, taken in zip(modules, samples, strict=True):
            started = time.perf_counter()
            module(x)
            taken.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(taken[WARMUP_ROUNDS:]) for taken in samples]
