"""The key of a step: a hash of all that its result depends on. A step whose key is unchanged is reused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgecompress.errors import EdgeCompressError
from edgecompress.files import hash_file
from edgecompress.options import Options, budget_of, cost_scheme_of, parse_fixed_layers, parse_layer_schemes, select_outputs
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.steps import CHECK, SOURCE_OPTIONS, STAGED, STEPS, Step
from edgecompress.planning import stages
from edgecompress.records import Budget, CompressionPlan, OutputSpec
from edgecompress.runs import hash_values
from edgecompress.targets import INT8_STATIC, TARGETS


def hash_inputs(context: RunContext, step: Step) -> str:
    """Return the key of a step: network, the data it uses, the files of the steps that it needs, and the options that have an effect."""
    if step is CHECK:
        return hash_values(step.name, context.source, [_digest_split(context, split) for split in step.data])
    files = [context.digest(name) for name in step.needs if STEPS[name].applies(context.options)]
    if step.name in STAGED and context.stage > 1:
        files.append(context.at_stage(context.stage - 1).digest("finetune"))
    stage = context.stage if step.name in STAGED else 0
    data = (_known_specs(context), context.hash_data(step.data))
    return hash_values(step.name, context.source, data, files, stage, effective_options(context, step))


def _digest_split(context: RunContext, split: str) -> str:
    """Return a hash of what a dataset holds, or the error of one that cannot be made, which the probe explains."""
    try:
        return context.hash_data((split,))
    except EdgeCompressError as error:
        return str(error)


def _known_specs(context: RunContext) -> tuple[OutputSpec, ...]:
    """Return the kinds of the outputs, which the targets tell too; () where they cannot be read, which the step itself explains."""
    try:
        return context.output_specs
    except EdgeCompressError:
        return ()


def effective_options(context: RunContext, step: Step) -> dict[str, Any]:
    """Return the options of a step by name, as far as they change its result, each in one form whatever way it was given."""
    silent = {*SOURCE_OPTIONS, *_without_effect(context, step)}
    return {name: _canonical_value(context, name) for name in step.options if name not in silent}


def is_timed(options: Options) -> bool:
    """Whether a plan goes by measured latencies: a device, a table or a latency is asked for."""
    budget = budget_of(options)
    return bool(options.device or options.table or budget.latency_ms or budget.speedup)


def _without_effect(context: RunContext, step: Step) -> set[str]:
    """Return the options of a step that change nothing beside the others."""
    o = context.options
    found = {"weakening"}  # its effect is in the fraction that stands for `stages`
    if step.name == "plan":
        found |= {"min_fidelity"} if context.repairs else set()
        found |= set() if is_timed(o) else {"device", "table", "threads", "mixed_precision"}
        found |= set() if is_timed(o) or o.size_mb else {"cost_scheme"}
    if step.name == "decompose" and not o.data_aware:
        found |= {"sensitivity_samples", "seed"}
    if step.name == "finetune":
        found |= {"stages"}
    if step.name == "quantize":
        found |= {"target", "format"}
        mixed = o.mixed_precision and INT8_STATIC in _schemes(o)
        found |= set() if mixed or o.layer_scheme or context.read(CompressionPlan).schemes else {"min_int8_agreement"}
    return found


# Options that may be given in several ways, or of which a part has an effect: their value in one form.
_CANONICAL: Final[dict[str, Callable[[RunContext], Any]]] = {
    "target": lambda context: TARGETS[context.options.target].rank_multiple,
    "table": lambda context: _hash_table(context.options),
    "cost_scheme": lambda context: cost_scheme_of(context.options),
    "scheme": lambda context: _schemes(context.options),
    "layer": lambda context: sorted(parse_fixed_layers(context.options).items()),
    "layer_scheme": lambda context: parse_layer_schemes(context.options),
    "stages": lambda context: stages.remaining_fraction(context.stage, context.options.stages, context.options.weakening),
}


def _canonical_value(context: RunContext, name: str) -> Any:
    if name in Budget.__struct_fields__:
        return getattr(budget_of(context.options), name)
    return _CANONICAL[name](context) if name in _CANONICAL else getattr(context.options, name)


def _hash_table(options: Options) -> str:
    """Return the hash of a latency table that is planned by; only the name of one that a device adds to, since it grows."""
    path = Path(options.table)
    return hash_file(path) if options.table and not options.device and path.is_file() else options.table


def _schemes(options: Options) -> tuple[str, ...]:
    return tuple(dict.fromkeys(scheme for _, scheme in select_outputs(options)))
