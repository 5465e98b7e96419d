"""Re-estimate BatchNorm statistics after layers were replaced: one pass without gradients recovers most of the accuracy."""

import copy
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecompress.network import batches
from edgecompress.network.batches import Batch

Statistics = tuple[Tensor, Tensor]  # mean and variance of each channel


class RecordedStatistics(NamedTuple):
    """Statistics of a network before its layers were replaced.

    Attributes:
        known: BatchNorm → its running statistics, from all the data that the network was trained on.
        read: BatchNorm → statistics of its input on a few samples, one pair for each batch.
    """

    known: dict[str, Statistics]
    read: dict[str, list[Statistics]]


def has_batchnorm(model: nn.Module) -> bool:
    return bool(_batchnorms(model))


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, inputs: Iterable[Batch], *, since: RecordedStatistics | None = None) -> None:
    """Replace the running means and variances of all BatchNorms by those of `inputs`, in place; every batch counts the same.

    Args:
        since: Statistics before layers were replaced, from the same inputs. The network then gets its earlier running statistics, shifted
            as much as replacing layers shifted those of `inputs`, so that inputs which are few or unlike the training data do no harm.

    References:
        P. Izmailov et al. Averaging Weights Leads to Wider Optima and Better Generalization. UAI 2018, section 3.
        M. Nagel et al. Data-Free Quantization Through Weight Equalization and Bias Correction. ICCV 2019, section 4.2: shifted means.
    """
    layers = _batchnorms(model)
    if since:
        _shift_statistics(model, inputs, since)
    if since or not layers:
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
            batches.run_model(model, x)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def record_statistics(model: nn.Module, inputs: Iterable[Batch]) -> RecordedStatistics:
    """Return a network's running statistics, and those that its BatchNorms read of `inputs` in eval mode; the network stays unchanged."""
    reader = copy.deepcopy(model).eval()
    layers = _batchnorms(reader)
    read: dict[str, list[Statistics]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: read[name].append(_input_statistics(args[0])))
    for x in inputs if layers else ():
        batches.run_model(reader, x)
    return RecordedStatistics({name: _running_statistics(layer) for name, layer in layers.items()}, read)


@torch.no_grad()
def _shift_statistics(model: nn.Module, inputs: Iterable[Batch], since: RecordedStatistics) -> None:
    """Shift statistics in the order of the network, so that each BatchNorm reads outputs of layers that are corrected already."""
    layers = {name: layer for name, layer in _batchnorms(model).items() if name in since.known}
    moves: dict[str, list[Statistics]] = {name: [] for name in layers}
    modes = {m: m.training for m in model.modules()}

    def shift_layer(name: str, layer: _BatchNorm, x: Tensor) -> None:
        if len(moves[name]) < len(since.read[name]):
            (mean, var), (mean_before, var_before) = _input_statistics(x), since.read[name][len(moves[name])]
            # a channel that is silent on these inputs keeps its variance
            moves[name].append((mean - mean_before, (var + layer.eps) / (var_before + layer.eps)))
            _set_statistics(layer, since.known[name], *moves[name][-1])

    handles = [layer.register_forward_pre_hook(lambda m, args, name=name: shift_layer(name, m, args[0])) for name, layer in layers.items()]
    model.eval()
    try:
        for x in inputs if layers else ():
            batches.run_model(model, x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    for name, moved in moves.items():
        if moved:
            shifts, ratios = zip(*moved, strict=True)
            _set_statistics(layers[name], since.known[name], torch.stack(shifts).mean(0), torch.stack(ratios).mean(0))


def normalize_by_batch(model: nn.Module) -> None:
    """Let every BatchNorm normalise by each batch's own statistics, in place, which approximates re-estimation without a pass."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
            layer.momentum = 0.0  # its running statistics stay unchanged


def _batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorms that keep statistics."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _running_statistics(layer: _BatchNorm) -> Statistics:
    return cast(Tensor, layer.running_mean).clone(), cast(Tensor, layer.running_var).clone()


def _input_statistics(x: Tensor) -> Statistics:
    """Return the statistics of each channel of a BatchNorm's input, `(n, channels, …)`."""
    var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    return mean, var


def _set_statistics(layer: _BatchNorm, known: Statistics, shift: Tensor, ratio: Tensor) -> None:
    """Set running statistics to known ones, with means shifted by a difference and variances scaled by a ratio."""
    cast(Tensor, layer.running_mean).copy_(known[0] + shift)
    cast(Tensor, layer.running_var).copy_(known[1] * ratio)
