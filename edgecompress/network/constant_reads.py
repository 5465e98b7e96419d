"""Numbers that a network reads from its constants, e.g. `self.scales.tolist()`, so that torch.export can be told them.

torch.export traces without values, so it refuses every read of a number. A network that was converted from ONNX reads many, all from
constants. One run shows which numbers are read and that none of them depends on the inputs; a second one is given the same numbers.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

# Functions that return numbers of a tensor to Python; what depends on shapes alone is no read.
READS: Final = frozenset(
    ["tolist", "item", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "equal", "allclose", "is_nonzero"]
)

Read = tuple[str, Any]


def record_reads(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Read]:
    """Return the reads of one run in order, each a function's name and its value, up to the first one that depends on the inputs."""
    recorder = _Recorder(inputs)
    with torch.no_grad(), recorder:
        model(*inputs)
    return recorder.reads


@contextmanager
def replay_reads(model: nn.Module, reads: list[Read]) -> Iterator[None]:
    """Let every run of a network inside the block read these numbers first, whatever its tensors are."""
    before: Callable[..., Any] = model.forward

    @functools.wraps(before)  # torch.export reads the signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Replayer(reads):
            return before(*args, **kwargs)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward  # of the instance; that of its class stays


class _Recorder(TorchFunctionMode):
    """Keeps what is read, and follows from tensor to tensor what depends on the inputs."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.reads: list[Read] = []
        self.is_over = False
        self.dependent: dict[int, Tensor] = {}  # storage → a tensor in it, which keeps the storage from being used again
        for x in inputs:
            self._mark(x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        given = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        dependent = any(_storage(x) in self.dependent for x in given)
        if name in READS:
            self.is_over |= dependent
            if not self.is_over:
                self.reads += _split_list(result) if name == "tolist" else [(name, result)]
        elif dependent:
            changed = given[:1] if name == "__setitem__" else []
            for x in (*changed, *_pytree.tree_leaves(result)):
                if isinstance(x, Tensor):
                    self._mark(x)
        return result

    def _mark(self, x: Tensor) -> None:
        self.dependent.setdefault(_storage(x), x)


class _Replayer(TorchFunctionMode):
    """Answers reads with known numbers; later ones, and those that come in another order, are torch.export's to refuse."""

    def __init__(self, reads: list[Read]) -> None:
        super().__init__()
        self.left = iter(reads)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in READS:
            return func(*args, **(kwargs or {}))
        known, value = next(self.left, ("", None))
        if known != name:
            self.left = iter(())
            return func(*args, **(kwargs or {}))
        return value


def _split_list(value: Any) -> list[Read]:
    """Return the reads of a list of numbers; torch.export reads it item by item."""
    return [read for entry in value for read in _split_list(entry)] if isinstance(value, list) else [("item", value)]


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)
