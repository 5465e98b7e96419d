"""The step `decompose`: the planned layers replaced by their factors."""

from edgecompress.factorizations.decompose import decompose
from edgecompress.network.weights import save_state
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.make_plan import fetch_planning_inputs, layers_before
from edgecompress.pipeline.networks import DECOMPOSED, load_stage
from edgecompress.planning import stages
from edgecompress.records import CompressionPlan, DecomposeResult


def make_decomposition(context: RunContext) -> DecomposeResult:
    """Factorize what the present stage changes; layers that keep their rank keep their fine-tuned factors."""
    made, before = context.read(CompressionPlan), layers_before(context)
    inputs = fetch_planning_inputs(context) if context.options.data_aware else None
    changed = stages.changed_layers(made, before)
    network = stages.restore_dense(load_stage(context, context.stage - 1), context.dense, stages.previous_forms(before, changed))
    model, result = decompose(network, changed, inputs=inputs, track=context.track)
    save_state(model.state_dict(), context.path(DECOMPOSED))
    return stages.add_kept_layers(result, made)
