"""Run a network again with one layer replaced, computing nothing that came before it: what its modules gave then is remembered.

A module that was done when the layer was first called reads nothing of it, so it gives what it gave. Only calls of modules are remembered;
what a `forward` computes between them is computed again, and so is what others changed in place.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from edgecompress.network import batches
from edgecompress.network.batches import Batch

BYTES: Final = 400_000_000  # of maps that are remembered; what comes later in a network is computed each time


@dataclass
class Calls:
    """All calls of a module: when the first began and the last ended, and what each gave, with its version; None for what is not kept."""

    began: int
    ended: int = 0
    gave: list[tuple[Tensor, int] | None] = field(default_factory=list)

    @property
    def unchanged(self) -> bool:
        return all(kept is not None and kept[0]._version == kept[1] for kept in self.gave)


class Recording(NamedTuple):
    """What a network, and each of its modules, gave for one batch."""

    outputs: Batch
    calls: Mapping[nn.Module, Calls]


@torch.no_grad()
def record(model: nn.Module, inputs: Batch) -> Recording:
    """Run a network on a batch and remember what its modules give."""
    clock = itertools.count()
    calls: dict[nn.Module, Calls] = {}
    held: dict[int, int] = {}  # storage → bytes; a module and the last of its children may give the same

    def begin(module: nn.Module, _: Any) -> None:
        calls.setdefault(module, Calls(next(clock)))

    def end(module: nn.Module, _: Any, output: Any) -> None:
        kept = None
        if isinstance(output, Tensor):
            storage = output.untyped_storage()
            if storage.data_ptr() in held or sum(held.values()) + storage.nbytes() <= BYTES:
                held[storage.data_ptr()] = storage.nbytes()
                kept = output, output._version
        calls[module].gave.append(kept)
        calls[module].ended = next(clock)

    handles = []
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            # the first of the hooks: what others make of the output, they make of it again
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end, prepend=True)]
    try:
        outputs = batches.run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Recording(outputs, calls)


@contextmanager
def resumed(recording: Recording, layer: nn.Module) -> Iterator[None]:
    """Let modules that were done before `layer` was first called give what they gave; the network's input must be the same."""
    first = recording.calls[layer].began if layer in recording.calls else 0
    done = [(module, calls.gave) for module, calls in recording.calls.items() if calls.ended < first and calls.unchanged]
    before = [module.__dict__.get("forward") for module, _ in done]
    for module, gave in done:
        module.forward = _giving([kept[0] for kept in gave if kept], module.forward)
    try:
        yield
    finally:
        for (module, _), own in zip(done, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def _giving(gave: list[Tensor], compute: Callable[..., Any]) -> Callable[..., Any]:
    left = iter(gave)

    def forward(*args: Any, **kwargs: Any) -> Any:
        known = next(left, None)
        return compute(*args, **kwargs) if known is None else known

    return forward
