"""Replace and inspect the modules of a network, and run it on many inputs."""

from typing import Any, Final

import torch
from torch import nn

from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.factors import Factors

WRAPPERS: Final = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the submodule `name` by `module`, in place and under every name that it has; return the replaced one.

    Factors answer from then on for the attributes of the layer that they replace.
    """
    before = model.get_submodule(name)
    if isinstance(module, Factors):
        module.adopt_attributes(before)
    for holder in list(model.modules()):
        for child, held in list(holder._modules.items()):
            if held is before:
                setattr(holder, child, module)
    return before


def unwrap_model(model: Any) -> Any:
    """Return the network within torch's wrappers for several devices and for compilation; anything else as it is."""
    while name := WRAPPERS.get(type(model).__name__ if isinstance(model, nn.Module) else ""):
        model = getattr(model, name)
    return model


def find_second_names(model: nn.Module) -> dict[str, str]:
    """Return each further name of a module that is registered several times, with its first name; its children are left out."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in first:
            first[id(module)] = name
        elif name.rpartition(".")[0] not in found and not any(name.startswith(f"{other}.") for other in found):
            found[name] = first[id(module)]
    return found


def find_hidden_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with parameters that attributes of a network hold in lists, tuples or dicts, where PyTorch does not look.

    Their names are expressions, e.g. `blocks[0]`.
    """
    registered = {id(module) for module in model.modules()}
    found: dict[str, nn.Module] = {}

    def search(value: object, name: str) -> None:
        if isinstance(value, nn.Module):
            if id(value) not in registered and id(value) not in map(id, found.values()) and any(True for _ in value.parameters()):
                found[name] = value
        elif isinstance(value, list | tuple):
            for i, entry in enumerate(value):
                search(entry, f"{name}[{i}]")
        elif isinstance(value, dict):
            for key, entry in value.items():
                search(entry, f"{name}[{key!r}]")

    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_"):
                search(value, f"{prefix}.{attribute}".lstrip("."))
    return found


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

    A parameter that is a view of another (a transpose, a slice) is not tied: copying a module makes it an independent one. Nor is a module
    tied to itself that is registered under two names.
    """
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
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
    """Convert the weights of `model` with four axes to another memory format, in place; values and shapes stay the same."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # the format has no meaning for other numbers of axes, and torch refuses it for five
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
    return model
