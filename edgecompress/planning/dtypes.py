"""Whether a layer of an int8 network is worth its integers: what rounding it costs the loss, measured beside what factorizing it costs."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks.layers import fill, kernel
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import divergence
from edgecompress.network.surgery import forward
from edgecompress.planning import loss_cache
from edgecompress.planning.candidates import Candidate
from edgecompress.planning.sensitivity import CEILING
from edgecompress.progress import Track, silent

FLOAT: Final = "fp32"
JOINT: Final = "int8-static"  # the scheme in whose files single layers may be left in float
LEVELS: Final = 127


def with_float(candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Candidate]]:
    """Return every form of every layer twice, in the network's scheme and in float."""
    return {name: [c for form in found for c in (form._replace(scheme=FLOAT), form)] for name, found in candidates.items()}


@torch.no_grad()
def rounding_losses(model: nn.Module, layers: Sequence[str], inputs: Batch, *, track: Track = silent) -> dict[str, float]:
    """Return the loss increase when a layer alone computes in int8: its weights with a scale a channel, what it reads with one scale.

    What was measured once is kept in the user's cache, see `known`.

    Args:
        model: Left as it is.
        inputs: Real ones.
    """
    model = copy.deepcopy(model).eval()
    reference = forward(model, inputs)
    path = loss_cache.file_of(model, inputs, [reference], data_aware=False)
    lost = loss_cache.load(path)
    if missing := [name for name in layers if loss_cache.rounded(name) not in lost]:
        for name in track(missing, "measuring rounding", len(missing)):
            lost[loss_cache.rounded(name)] = _rounding_loss(model, name, inputs, reference)
        loss_cache.store(path, lost)
    return {name: lost[loss_cache.rounded(name)] for name in layers}


def _rounding_loss(model: nn.Module, name: str, inputs: Batch, reference: Batch) -> float:
    layer = model.get_submodule(name)
    whole = cast(Tensor, layer.weight).clone()
    fill(layer, _rounded_kernel(kernel(cast(Any, layer))))
    hook = layer.register_forward_pre_hook(_round_inputs)
    loss = float(divergence(forward(model, inputs), reference))
    hook.remove()
    cast(Tensor, layer.weight).copy_(whole)
    return min(max(loss, 0.0), CEILING) if math.isfinite(loss) else CEILING


def _rounded_kernel(k: Tensor) -> Tensor:
    """Round `(groups, out, in, *area)` to 8 bits, symmetric, a scale for each output channel."""
    scale = k.flatten(2).abs().amax(2).clamp(min=torch.finfo(k.dtype).tiny) / LEVELS
    scale = scale.reshape(*scale.shape, *[1] * (k.ndim - 2))
    return (k / scale).round() * scale


def _round_inputs(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round what a layer reads to 8 bits between its least and greatest value, as calibration on these inputs would."""
    x = args[0]
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / (2 * LEVELS + 1)).clamp(min=torch.finfo(x.dtype).tiny)
    zero = (-low / scale).round()
    return (((x / scale + zero).round() - zero) * scale, *args[1:])
