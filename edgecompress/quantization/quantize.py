"""Choose calibration inputs, and predict how well each layer's weight fits an int8 grid."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.data import count_items, describe_dataset, fetch_samples
from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.layer_kinds import WEIGHTED_MODULES
from edgecompress.network.parity import sqnr_db
from edgecompress.network.surgery import forward
from edgecompress.quantization.fake_quantize import fake_quantize_symmetric, row_peaks
from edgecompress.records import LayerQuantization, QuantizeResult, QuantSpec
from edgecompress.records.fields import check_choice
from edgecompress.targets import SCHEMES


def quantize(
    model: nn.Module,
    data: "Dataset[Any]",
    *,
    schemes: tuple[str, ...],
    example_inputs: Batch | None = None,
    samples: int = 500,
    seed: int = 0,
) -> tuple[Batch, QuantizeResult]:
    """Return calibration inputs, each `(samples, …)`, and the record of them: their range, and the int8 SQNR of each layer's weight.

    Args:
        example_inputs: One sample of each input; by default the inputs of the data's first sample.

    Raises:
        ConfigError: Unknown scheme, no data, or inputs that are not finite or no index of their embedding.
    """
    for scheme in schemes:
        check_choice("scheme", scheme, SCHEMES)
    if samples < 1 or count_items(data) < 1:
        raise ConfigError("calibration: no samples; give calibration_data() or --data, and --calibration-samples of at least 1")
    inputs, _ = fetch_samples(data, min(samples, count_items(data)), seed=seed, example=example_inputs, labelled=False)
    if any(not x.is_floating_point() for x in inputs):
        forward(model, inputs)  # an index beyond its embedding is told here by name
    low, high = zip(*((float(x.min()), float(x.max())) for x in inputs), strict=True)
    return inputs, QuantizeResult(
        specs=tuple(quant_spec(scheme, batches.count_samples(inputs)) for scheme in schemes),
        calibration_data=describe_dataset(data),
        input_range=(min(low), max(high)),
        layers=tuple(
            LayerQuantization(layer=name, per_channel_sqnr_db=weight_sqnr_db(w, True), per_tensor_sqnr_db=weight_sqnr_db(w, False))
            for name, module in model.named_modules()
            if isinstance(module, WEIGHTED_MODULES)
            for w in [module.weight.detach()]
        ),
    )


def quant_spec(scheme: str, samples: int, layers: dict[str, str] | None = None) -> QuantSpec:
    """Return how an artifact of `scheme` is quantized; `layers` are the schemes of layers that differ."""
    known = SCHEMES[scheme]
    seen = samples if known.calibrated else 0
    return QuantSpec(scheme=scheme, per_channel=known.per_channel, calibration_samples=seen, layers=layers or {})


def weight_sqnr_db(weight: Tensor, per_channel: bool) -> float:
    """Return the SQNR of a weight rounded to int8, symmetrically, with one scale for the tensor or for each row of axis 0."""
    peak = row_peaks(weight) if per_channel else weight.abs().amax()
    with torch.no_grad():
        return sqnr_db(fake_quantize_symmetric(weight, peak, 8), weight)
