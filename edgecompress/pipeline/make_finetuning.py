"""The step `finetune`: the accuracy of the decomposed network recovered from the dense one."""

from typing import Final

from edgecompress.network.weights import save_state
from edgecompress.pipeline.context import SMALL_NETWORK_MACS, RunContext
from edgecompress.pipeline.networks import DECOMPOSED, WEIGHTS, load_decomposed
from edgecompress.records import CompressionPlan, FinetuneResult
from edgecompress.recovery.finetune import FinetuneOptions, finetune

CHECKPOINT: Final = "finetune.checkpoint.safetensors"


def make_finetuning(context: RunContext) -> FinetuneResult:
    """Fine-tune the decomposed network of the present stage; a run that was killed goes on from its last whole epoch."""
    o, plan, train = context.options, context.read(CompressionPlan), context.data.dataset("train")
    checkpoint = context.path(CHECKPOINT)
    model, result = finetune(
        load_decomposed(context, DECOMPOSED),
        train if train is not None else context.data.dataset("calibration"),
        teacher=context.dense,
        example_inputs=context.recipe.example_inputs,
        eval_data=context.data.dataset("eval"),
        specs=context.output_specs,
        metric=context.recipe.metric,
        loss=context.recipe.loss,
        options=FinetuneOptions(
            epochs=o.epochs if plan.layers and train is not None else 0,
            samples=o.epoch_samples,
            batch_size=o.batch_size,
            optimizer=o.optimizer,
            learning_rate=o.learning_rate,
            threads=1 if plan.macs_before < SMALL_NETWORK_MACS else 0,
            seed=o.seed + context.stage - 1,  # a seed draws the same samples in every call
        ),
        checkpoint_path=checkpoint,
        track=context.track,
    )
    save_state(model.state_dict(), context.path(WEIGHTS))
    checkpoint.unlink(missing_ok=True)
    return result
