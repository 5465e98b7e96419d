"""The step `analyze`: parameters, MACs and latency of every layer of the dense network, and the kinds of its outputs."""

import msgspec

from edgecompress.errors import UnsupportedError
from edgecompress.network.analyze import analyze
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.steps import CHECK
from edgecompress.records import CheckResult, ModelStats, read_record


def make_analysis(context: RunContext) -> ModelStats:
    """Analyze the dense network on its example inputs."""
    notes = (*context.network.notes, *context.data.read_notes())
    stats = analyze(context.dense, context.recipe.example_inputs, name=context.recipe.name, track=context.track)
    try:
        outputs = context.output_specs
    except UnsupportedError:  # torch.export refuses the network; its layers can be shown all the same
        outputs = ()
    other = read_record(context.run.path(CHECK.files[0]), CheckResult).other_macs
    macs = stats.macs + sum(other.values())
    return msgspec.structs.replace(stats, outputs=outputs, notes=notes, macs=macs, other_macs=other)
