"""Loss increase of quantizing one layer to int8, used to choose precision and rank jointly."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgecompress.factorizations.blocks.layers import grouped_kernel, write_kernel
from edgecompress.network.batches import Batch
from edgecompress.network.outputs import Specs, divergence
from edgecompress.network.surgery import forward
from edgecompress.planning import loss_cache
from edgecompress.planning.candidates import Candidate
from edgecompress.planning.sensitivity import MAX_LOSS
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.fake_quantize import fake_quantize_asymmetric, fake_quantize_symmetric
from edgecompress.targets import FLOAT32


def add_float_candidates(candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Candidate]]:
    """Return every candidate of every layer twice: in the network's scheme and in float."""
    return {name: [c for form in found for c in (form._replace(scheme=FLOAT32), form)] for name, found in candidates.items()}


@torch.no_grad()
def measure_int8_losses(
    model: nn.Module, layers: Sequence[str], inputs: Batch, *, specs: Specs | None = None, track: Track = track_silently
) -> dict[str, float]:
    """Return the loss increase when one layer alone computes in int8: weights with one scale per channel, its input with one scale.

    Measured losses are kept in the user's cache, see `loss_cache`.

    Args:
        model: The float network; left unchanged.
        layers: Names of the layers to measure.
        inputs: Real inputs, a tuple of tensors `(n, …)`.
        specs: The kinds of the outputs; None guesses them from the shapes.
    """
    model = copy.deepcopy(model).eval()
    reference = forward(model, inputs)
    path = loss_cache.cache_path(model, inputs, [reference], specs=specs, data_aware=False)
    losses = loss_cache.load_losses(path)
    if missing := [name for name in layers if loss_cache.int8_key(name) not in losses]:
        for name in track(missing, "measuring rounding", len(missing)):
            losses[loss_cache.int8_key(name)] = _measure_int8_loss(model, name, inputs, reference, specs)
        loss_cache.store_losses(path, losses)
    return {name: losses[loss_cache.int8_key(name)] for name in layers}


def _measure_int8_loss(model: nn.Module, name: str, inputs: Batch, reference: Batch, specs: Specs | None) -> float:
    layer = model.get_submodule(name)
    weight = cast(Tensor, layer.weight).clone()
    write_kernel(layer, _round_kernel(grouped_kernel(cast(Any, layer))))
    hook = layer.register_forward_pre_hook(_round_inputs)
    loss = float(divergence(forward(model, inputs), reference, specs=specs))
    hook.remove()
    cast(Tensor, layer.weight).copy_(weight)
    return min(max(loss, 0.0), MAX_LOSS) if math.isfinite(loss) else MAX_LOSS


def _round_kernel(k: Tensor) -> Tensor:
    """Round `(groups, out, in, *area)` to 8 bits, symmetric, with one scale per output channel."""
    peak = k.flatten(2).abs().amax(2)
    return fake_quantize_symmetric(k, peak.reshape(*peak.shape, *[1] * (k.ndim - 2)), 8)


def _round_inputs(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round a layer's input to 8 bits between its minimum and maximum, as calibration on these inputs would."""
    x = args[0]
    return fake_quantize_asymmetric(x, x.min(), x.max(), 8), *args[1:]
