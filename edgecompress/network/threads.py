"""Set the number of threads that torch uses, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def use_threads(n: int) -> Iterator[None]:
    """Let torch use `n` threads inside the `with` block; 0 leaves the number unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
