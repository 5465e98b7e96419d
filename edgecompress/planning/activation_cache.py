"""Run a network again with one layer replaced, reusing the outputs of all modules that finished before that layer.

A module that finished before the layer's first call does not depend on the layer, so its output is the same. Only outputs of modules are
reused. Whatever a `forward` computes between modules is computed again, and so are outputs that other code changed in place.
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

MAX_BYTES: Final = 400_000_000  # memory for outputs of modules; outputs beyond it, late in a network, are computed each time


@dataclass
class ModuleCalls:
    """All calls of a module: when the first began, when the last ended, and each output with its version; None for one not kept."""

    began: int
    ended: int = 0
    outputs: list[tuple[Tensor, int] | None] = field(default_factory=list)

    @property
    def is_reusable(self) -> bool:
        """Whether all outputs were kept and none was changed in place."""
        return all(kept is not None and kept[0]._version == kept[1] for kept in self.outputs)


class Recording(NamedTuple):
    """The outputs of a network, and of each of its modules, for one batch."""

    outputs: Batch
    calls: Mapping[nn.Module, ModuleCalls]


@torch.no_grad()
def record_activations(model: nn.Module, inputs: Batch) -> Recording:
    """Run a network on a batch and keep the outputs of its modules."""
    clock = itertools.count()
    calls: dict[nn.Module, ModuleCalls] = {}
    held: dict[int, int] = {}  # storage → bytes; a module and its last child may return the same tensor

    def begin(module: nn.Module, _: Any) -> None:
        calls.setdefault(module, ModuleCalls(next(clock)))

    def end(module: nn.Module, _: Any, output: Any) -> None:
        kept = None
        if isinstance(output, Tensor):
            storage = output.untyped_storage()
            if storage.data_ptr() in held or sum(held.values()) + storage.nbytes() <= MAX_BYTES:
                held[storage.data_ptr()] = storage.nbytes()
                kept = output, output._version
        calls[module].outputs.append(kept)
        calls[module].ended = next(clock)

    handles = []
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            # Runs before the module's other hooks: those that change the output change it again in a replay.
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end, prepend=True)]
    try:
        outputs = batches.run_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Recording(outputs, calls)


@contextmanager
def replay_before(recording: Recording, layer: nn.Module) -> Iterator[None]:
    """Make modules that finished before the first call of `layer` return their recorded outputs; the network's input must be the same."""
    first = recording.calls[layer].began if layer in recording.calls else 0
    done = [(module, calls.outputs) for module, calls in recording.calls.items() if calls.ended < first and calls.is_reusable]
    before = [module.__dict__.get("forward") for module, _ in done]
    for module, outputs in done:
        module.forward = _replay_outputs([kept[0] for kept in outputs if kept], module.forward)
    try:
        yield
    finally:
        for (module, _), own in zip(done, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def _replay_outputs(outputs: list[Tensor], compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `forward` that returns the given outputs one call after another, and computes once they are used up."""
    remaining = iter(outputs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        recorded = next(remaining, None)
        return compute(*args, **kwargs) if recorded is None else recorded

    return forward
