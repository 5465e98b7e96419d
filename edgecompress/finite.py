"""Which values of a model must be finite."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def spoilt(model: nn.Module) -> Iterator[str]:
    """Yield the names of weights and statistics that hold NaN or infinity, and of buffers that hold NaN: a mask is −∞ where it bars."""
    for prefix, module in model.named_modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            finite = isinstance(value, nn.Parameter) or isinstance(module, _NormBase)
            if value.is_floating_point() and bool((~value.isfinite() if finite else value.isnan()).any()):
                yield f"{prefix}.{name}".removeprefix(".")
