"""Choose calibration inputs, and show beforehand how well each layer's weight fits an int8 grid."""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.data import describe_dataset, fetch_samples
from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.counting import COUNTED
from edgecompress.network.surgery import forward
from edgecompress.records import LayerQuantization, QuantizeResult, QuantSpec
from edgecompress.records.fields import check_choice
from edgecompress.targets import SCHEMES

INT8_MAX: Final = 127
EXACT_DB: Final = 200.0  # what an error of zero is written as


def quantize(
    model: nn.Module,
    data: "Dataset[Any]",
    *,
    schemes: tuple[str, ...],
    example_inputs: Batch | None = None,
    samples: int = 500,
    seed: int = 0,
) -> tuple[Batch, QuantizeResult]:
    """Return calibration inputs, each `(samples, …)`, and what they and the weights look like to an int8 grid.

    Args:
        example_inputs: What the model takes; by default whatever the first sample is.

    Raises:
        ConfigError: Unknown scheme, no data, or inputs that are not finite or no index of their embedding.
    """
    for scheme in schemes:
        check_choice("scheme", scheme, SCHEMES)
    if samples < 1 or len(data) < 1:  # type: ignore[arg-type]
        raise ConfigError("calibration: no samples; give calibration_data() or --data, and --calibration-samples of at least 1")
    inputs, _ = fetch_samples(data, min(samples, len(data)), seed=seed, example=example_inputs, labelled=False)  # type: ignore[arg-type]
    if any(not x.is_floating_point() for x in inputs):
        forward(model, inputs)  # an index beyond its embedding is told here by name
    low, high = zip(*((float(x.min()), float(x.max())) for x in inputs), strict=True)
    return inputs, QuantizeResult(
        specs=tuple(spec(scheme, batches.size(inputs)) for scheme in schemes),
        calibration_data=describe_dataset(data),
        input_range=(min(low), max(high)),
        layers=tuple(
            LayerQuantization(layer=name, per_channel_sqnr_db=sqnr_db(w, True), per_tensor_sqnr_db=sqnr_db(w, False))
            for name, module in model.named_modules()
            if isinstance(module, COUNTED)
            for w in [module.weight.detach()]
        ),
    )


def spec(scheme: str, samples: int, layers: dict[str, str] | None = None) -> QuantSpec:
    """Return how an artifact of `scheme` is quantized; `layers` are the schemes of those that differ."""
    known = SCHEMES[scheme]
    seen = samples if known.calibrated else 0
    return QuantSpec(scheme=scheme, per_channel=known.per_channel, calibration_samples=seen, layers=layers or {})


def sqnr_db(w: Tensor, per_channel: bool) -> float:
    """Return 20·log10(‖W‖ / ‖W − Q(W)‖) of symmetric int8 rounding, one scale for the tensor or for each row of axis 0."""
    peak = w.abs().flatten(1).amax(1).reshape(-1, *[1] * (w.ndim - 1)) if per_channel else w.abs().amax()
    scale = (peak / INT8_MAX).clamp_min(torch.finfo(w.dtype).tiny)
    noise = float((w - (w / scale).round() * scale).norm())
    signal = float(w.norm())
    return min(EXACT_DB, 20 * math.log10(signal / noise)) if noise > 0 and signal > 0 else EXACT_DB
