"""The step `qat`: weights of int8-static files trained under their rounding."""

from typing import Final

from edgecompress.errors import ConfigError
from edgecompress.network.weights import save_state
from edgecompress.pipeline.context import SMALL_NETWORK_MACS, RunContext
from edgecompress.pipeline.make_calibration import CALIBRATION, schemes_of_layers
from edgecompress.pipeline.networks import QAT_WEIGHTS, load_compressed
from edgecompress.quantization.calibration import load_calibration
from edgecompress.records import CompressionPlan, QatResult, QuantSpec
from edgecompress.recovery.qat import QatOptions, qat
from edgecompress.targets import INT8_STATIC

CHECKPOINT: Final = "qat.checkpoint.safetensors"


def make_qat(context: RunContext) -> QatResult:
    """Train the weights of int8-static files; a run that was killed goes on from its last whole epoch.

    Raises:
        ConfigError: The run has no training data.
    """
    o, train = context.options, context.data.dataset("train")
    if train is None:
        raise ConfigError(f"{context.recipe.source}: no training data for --qat-epochs; add train_data() or give --data")
    checkpoint = context.run.path(CHECKPOINT)
    constants, result = qat(
        load_compressed(context),
        train,
        example_inputs=context.recipe.example_inputs,
        calibration=load_calibration(context.run.path(CALIBRATION)),
        quant=QuantSpec(scheme=INT8_STATIC, layers=schemes_of_layers(context, INT8_STATIC)),
        eval_data=context.data.dataset("eval"),
        specs=context.output_specs,
        loss=context.recipe.loss,
        options=QatOptions(
            epochs=o.qat_epochs,
            samples=o.epoch_samples,
            batch_size=o.batch_size,
            threads=1 if context.read(CompressionPlan).macs_before < SMALL_NETWORK_MACS else 0,
            seed=o.seed,
        ),
        checkpoint_path=checkpoint,
        track=context.track,
    )
    save_state(constants, context.run.path(QAT_WEIGHTS))
    checkpoint.unlink(missing_ok=True)
    return result
