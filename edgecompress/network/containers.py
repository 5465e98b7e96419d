"""Find the layers that a network needs as they are, by putting each into a container, as a factorized layer would stand there."""

from collections.abc import Sequence
from typing import Final

from torch import nn

from edgecompress.errors import first_line
from edgecompress.network.batches import Batch
from edgecompress.network.factors import Factors
from edgecompress.network.probe import Attempt, attempt, differs
from edgecompress.network.surgery import replace_module

READS_WEIGHT: Final = "the network computes with its weight itself, beside calling it"


def find_irreplaceable_layers(model: nn.Module, inputs: Batch, layers: Sequence[str]) -> dict[str, str]:
    """Return the layers that cannot be replaced by others, with the reason, e.g. because the network reads the layer's weight itself.

    The network runs with each layer in a container of the class that factors have. Layers whose container makes it fail, or give other
    outputs, are found by halving; a network that takes any replacement costs two runs.

    Args:
        model: In eval mode; as it was afterwards.
        inputs: On which the network runs.
        layers: Names of its weighted layers.
    """
    before = attempt(model, inputs, counted=False)
    found: dict[str, str] = {}

    def search(names: Sequence[str]) -> None:
        reason = _try_containers(model, inputs, names, before) if names else ""
        if reason and len(names) == 1:
            found[names[0]] = reason
        elif reason:
            half = len(names) // 2
            search(names[:half])
            search(names[half:])

    search([name for name in layers if name and not list(model.get_submodule(name).children())])
    if READS_WEIGHT in found.values() and _describe_change(before, attempt(model, inputs, counted=False)):
        return {}  # two runs of the network itself differ, which shows nothing
    return found


def _try_containers(model: nn.Module, inputs: Batch, names: Sequence[str], before: Attempt) -> str:
    """Return how the network fails with layers in containers; "" where it gives the outputs that it gave before."""
    held = {name: replace_module(model, name, Factors(model.get_submodule(name))) for name in names}
    try:
        return _describe_change(before, attempt(model, inputs, counted=False))
    finally:
        for name, layer in held.items():
            replace_module(model, name, layer)


def _describe_change(before: Attempt, after: Attempt) -> str:
    if before.outputs is None:
        return ""
    if after.outputs is None:
        return f"the network takes no other layer in its place: {first_line(after.error.__cause__ or after.error)}" if after.error else ""
    return READS_WEIGHT if differs(before.outputs, after.outputs) else ""
