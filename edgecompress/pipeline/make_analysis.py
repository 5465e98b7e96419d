"""The step `analyze`: parameters, MACs and latency of every layer of the dense network."""

from edgecompress.network.analyze import analyze
from edgecompress.pipeline.context import RunContext
from edgecompress.records import ModelStats


def make_analysis(context: RunContext) -> ModelStats:
    """Analyze the dense network on its example inputs."""
    return analyze(context.dense, context.recipe.example_inputs, name=context.recipe.name, track=context.track)
