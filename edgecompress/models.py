"""Small operations on modules that several steps need."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from edgecompress.factorizations import Factors

BATCH: Final = 64
BATCH_BYTES: Final = 4_000_000  # of input; the maps of larger batches are given back to the system and cleared anew at every layer


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` in place of the submodule `name`, in place; return what was there."""
    parent, _, child = name.rpartition(".")
    holder = model.get_submodule(parent)
    before: nn.Module = getattr(holder, child)
    setattr(holder, child, module)
    return before


@torch.inference_mode()
def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs of a model in eval mode for many inputs; several outputs are flattened and joined, `(n, features)`."""
    return torch.cat([joined(model(x)) for x in torch.split(inputs, max(1, min(BATCH, BATCH_BYTES // (4 * max(1, inputs[0].numel())))))])


def joined(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the outputs of one batch as one tensor; several are flattened and joined, `(n, features)`."""
    return outputs if isinstance(outputs, Tensor) else torch.cat([part.flatten(1) for part in outputs], 1)


def tied_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers whose weight is a parameter of another module too, each with that other.

    A parameter that is a view of another (a transpose, a slice) is not tied: whatever copies a module makes it one of its own.
    """
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, key))
    return {
        name: others[0]
        for held in owners.values()
        for name, key in held
        if key == "weight" and (others := [o if k == "weight" else f"{o}.{k}".lstrip(".") for o, k in held if o != name])
    }


def is_decomposed(model: nn.Module) -> bool:
    return any(isinstance(module, Factors) for module in model.modules())


def in_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay the weights of `model` out in another memory format, in place; values and shapes stay."""
    return model.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]
