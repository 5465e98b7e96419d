"""The networks of a run, loaded from what its steps left."""

from safetensors.torch import load_file
from torch import nn
from torch.export import ExportedProgram

from edgecompress.factorizations.decompose import decompose
from edgecompress.network.exported import to_program
from edgecompress.network.weights import load_weights
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.steps import STEPS
from edgecompress.quantization.qat_module import replace_constants
from edgecompress.records import CompressionPlan
from edgecompress.targets import INT8_STATIC

DECOMPOSED, WEIGHTS, QAT_WEIGHTS = STEPS["decompose"].files[1], STEPS["finetune"].files[1], STEPS["qat"].files[1]


def load_decomposed(context: RunContext, weights: str) -> nn.Module:
    """Return the network of the present stage's plan with the weights of one of its files."""
    model, _ = decompose(context.dense, context.read(CompressionPlan), fit=False)
    load_weights(model, load_file(context.path(weights)), source=weights)
    return model


def load_stage(context: RunContext, stage: int) -> nn.Module:
    """Return the network after a stage; stage 0 is the dense network."""
    return context.dense if stage == 0 else load_decomposed(context.at_stage(stage), WEIGHTS).eval()


def load_compressed(context: RunContext) -> nn.Module:
    """Return the decomposed network with its fine-tuned weights, loaded once in a process."""
    final = context.at_stage(context.options.stages)
    return final.remember("compressed network", final.digest("finetune"), lambda: load_stage(final, final.stage))


def export_compressed(context: RunContext) -> ExportedProgram:
    """Return the program of the compressed network, exported once in a process."""
    final = context.at_stage(context.options.stages)

    def export() -> ExportedProgram:
        return to_program(load_compressed(context), context.recipe.example_inputs, name=context.recipe.name)

    return final.remember("compressed program", final.digest("finetune"), export)


def export_trained(context: RunContext) -> ExportedProgram:
    """Return the program of the compressed network with the weights of quantization-aware training."""
    return replace_constants(export_compressed(context), load_file(context.run.path(QAT_WEIGHTS)))


def trains(context: RunContext, variant: str, scheme: str) -> bool:
    """Whether the files of a variant in a scheme are made from the weights of quantization-aware training."""
    return variant != "dense" and scheme == INT8_STATIC and STEPS["qat"].applies(context.options)
