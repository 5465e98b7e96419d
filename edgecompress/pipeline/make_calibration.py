"""The step `quantize`: calibration inputs, and which layers of integer files stay in float."""

import difflib
from typing import Final

import msgspec

from edgecompress.errors import ConfigError
from edgecompress.network.batches import Batch
from edgecompress.options import gate_of, parse_layer_schemes, select_outputs
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.networks import export_compressed, load_compressed
from edgecompress.pipeline.steps import STEPS
from edgecompress.quantization.calibration import save_calibration
from edgecompress.quantization.mixed_precision import plan_precision
from edgecompress.quantization.quantize import quantize
from edgecompress.records import CompressionPlan, PrecisionPlan, QuantizeResult
from edgecompress.targets import INT8_STATIC, SCHEMES

CALIBRATION: Final = STEPS["quantize"].files[1]


def make_calibration(context: RunContext) -> QuantizeResult:
    """Draw the calibration inputs of integer files; with `mixed_precision`, find the layers that int8 hurts most.

    Raises:
        ConfigError: The run has no data to calibrate on, or a layer scheme is for a layer that does not exist.
    """
    o = context.options
    schemes = tuple(dict.fromkeys(scheme for _, scheme in select_outputs(o)))
    _check_layer_names(context)
    dataset = context.data.dataset("calibration")
    if dataset is None:
        raise ConfigError(f"{context.recipe.source}: no data to calibrate and verify on; add calibration_data() or give --data")
    inputs, result = quantize(
        load_compressed(context),
        dataset,
        schemes=schemes,
        example_inputs=context.recipe.example_inputs,
        samples=o.calibration_samples,
        seed=o.seed,
    )
    save_calibration(inputs, context.run.path(CALIBRATION))
    precision = _plan_precision(context, inputs) if o.mixed_precision and INT8_STATIC in schemes else None
    return msgspec.structs.replace(result, precision=precision)


def schemes_of_layers(context: RunContext, scheme: str) -> dict[str, str]:
    """Return the schemes of layers that differ from their file's: those chosen by measurement, by the plan and by hand."""
    if not SCHEMES[scheme].has_integer_weights:
        return {}
    precision = context.read(QuantizeResult).precision
    measured = precision.schemes if precision and precision.scheme == scheme else {}
    planned = context.read(CompressionPlan).schemes if scheme == INT8_STATIC else {}
    return {**planned, **measured, **parse_layer_schemes(context.options)}


def _plan_precision(context: RunContext, inputs: Batch) -> PrecisionPlan:
    o = context.options
    return plan_precision(
        export_compressed(context),
        inputs,
        scheme=INT8_STATIC,
        limits=gate_of(INT8_STATIC, o),
        fixed={**context.read(CompressionPlan).schemes, **parse_layer_schemes(o)},
        specs=context.output_specs,
        track=context.track,
    )


def _check_layer_names(context: RunContext) -> None:
    """Refuse schemes for layers that the compressed network does not have.

    Raises:
        ConfigError: Names the nearest layers.
    """
    known = [name for name, _ in load_compressed(context).named_modules() if name]
    for name in parse_layer_schemes(context.options):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            meant = f"did you mean {', '.join(near)}?" if near else "see `edgecompress analyze`"
            raise ConfigError(f"--layer-scheme {name}: no such layer; {meant}")
