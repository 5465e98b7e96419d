"""Re-estimate BatchNorm statistics after weights were replaced: no gradients, one pass, most of the accuracy back."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecompress import batches
from edgecompress.batches import Batch


def has_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


@torch.no_grad()
def reestimate(model: nn.Module, inputs: Iterable[Batch]) -> None:
    """Replace running means and variances by those of `inputs`, in place; every batch counts the same.

    References:
        P. Izmailov et al. Averaging Weights Leads to Wider Optima and Better Generalization. UAI 2018, section 3.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    modes = {m: m.training for m in model.modules()}
    momenta = {m: m.momentum for m in layers}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over batches
        layer.train()
    try:
        for x in inputs:
            batches.run(model, x)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def by_batch(model: nn.Module) -> None:
    """Let every BatchNorm normalise by each batch's own statistics, in place: what re-estimation comes to, without a pass of its own."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
            layer.momentum = 0.0  # what it has estimated stays
