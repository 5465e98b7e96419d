"""Re-estimate BatchNorm statistics after weights were replaced: no gradients, one pass, most of the accuracy back."""

import copy
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecompress import batches
from edgecompress.batches import Batch

Statistics = dict[str, tuple[Tensor, Tensor]]  # BatchNorm → mean and variance of each channel


class Before(NamedTuple):
    """A network before its layers were replaced.

    Attributes:
        known: The statistics it has, of all the data it was trained on.
        read: Those of what its BatchNorms read of a few inputs.
    """

    known: Statistics
    read: Statistics


def has_batchnorm(model: nn.Module) -> bool:
    return bool(_layers(model))


@torch.no_grad()
def reestimate(model: nn.Module, inputs: Iterable[Batch], *, since: Before | None = None) -> None:
    """Replace running means and variances by those of `inputs`, in place; every batch counts the same.

    Args:
        since: The network before its layers were replaced, on the same inputs. Statistics then become that network's own, moved by as
            much as replacing moved those of `inputs`: inputs that are few, or unlike what it was trained on, do no harm of their own.

    References:
        P. Izmailov et al. Averaging Weights Leads to Wider Optima and Better Generalization. UAI 2018, section 3.
        M. Nagel et al. Data-Free Quantization Through Weight Equalization and Bias Correction. ICCV 2019, section 4.2: means moved so.
    """
    layers = _layers(model)
    if not layers:
        return
    modes = {m: m.training for m in model.modules()}
    momenta = {m: m.momentum for m in layers.values()}
    model.eval()
    for layer in layers.values():
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
    if since:
        for name in layers.keys() & since.known.keys():
            _move(layers[name], since.known[name], since.read[name])


def before(model: nn.Module, inputs: Iterable[Batch]) -> Before:
    """Return the statistics of a network, which keeps them, and those of what it reads of `inputs`."""
    reader = copy.deepcopy(model)
    reestimate(reader, inputs)
    return Before(_statistics(model), _statistics(reader))


def by_batch(model: nn.Module) -> None:
    """Let every BatchNorm normalise by each batch's own statistics, in place: what re-estimation comes to, without a pass of its own."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
            layer.momentum = 0.0  # what it has estimated stays


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorms that keep statistics."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    return cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)


def _statistics(model: nn.Module) -> Statistics:
    return {name: (_of(layer)[0].clone(), _of(layer)[1].clone()) for name, layer in _layers(model).items()}


def _move(layer: _BatchNorm, known: tuple[Tensor, Tensor], read: tuple[Tensor, Tensor]) -> None:
    """Set statistics to `known` ones, moved from `read` to what the layer has now: means by the difference, variances by the ratio."""
    mean, var = _of(layer)
    mean.copy_(known[0] + (mean - read[0]))
    var.copy_(known[1] * ((var + layer.eps) / (read[1] + layer.eps)))  # a channel that is silent on these inputs keeps its variance
