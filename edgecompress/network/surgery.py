"""Replace and inspect the modules of a network, and run it on many inputs."""

import torch
from torch import nn

from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.factors import Factors


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the submodule `name` by `module`, in place; return the replaced one."""
    parent, _, child = name.rpartition(".")
    holder = model.get_submodule(parent)
    before: nn.Module = getattr(holder, child)
    setattr(holder, child, module)
    return before


@torch.inference_mode()
def forward(model: nn.Module, inputs: Batch) -> Batch:
    """Return the outputs of a model in eval mode for many inputs.

    Raises:
        ConfigError, UnsupportedError: See `batches.run_model`.
    """
    parts = [batches.run_model(model, x) for x in batches.split_samples(inputs, batches.choose_chunk_size(inputs))]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def find_tied_layers(model: nn.Module) -> dict[str, str]:
    """Return each layer whose weight is also a parameter of another module, with the name of that module.

    A parameter that is a view of another (a transpose, a slice) is not tied: copying a module makes it an independent one.
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


def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Convert the weights of `model` to another memory format, in place; values and shapes stay the same."""
    return model.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]
