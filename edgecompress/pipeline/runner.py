"""Run the steps of the table in order; a step whose key and files are unchanged is reused."""

from collections.abc import Iterator

from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import UserCodeError
from edgecompress.files import write_atomically
from edgecompress.network.checks import CHECKS, as_error
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.step_keys import hash_inputs
from edgecompress.pipeline.steps import CHECK, STAGED, STEPS, Step, steps_up_to
from edgecompress.records import CheckResult, Record, read_record, to_json
from edgecompress.runs import stopwatch


def run(context: RunContext, last: str, *, before: str = "") -> Record:
    """Run a step and all that it needs, each on the files that those before it left in the run folder; return its record.

    The probe precedes them all. Planning, decomposing and fine-tuning are repeated for each stage that the options ask for.

    Args:
        before: A later step that the caller does something like: what the probe found against it is refused too.

    Raises:
        EdgeCompressError: A step failed; those before it are kept.
    """
    _check_options(context, STEPS[last])
    refuse_findings(run_check(context), context, before or last)
    record: Record | None = None
    for step, stage in _order_steps(context, last):
        record = run_step(context.at_stage(stage), step)
    assert record is not None
    return record


def run_check(context: RunContext) -> CheckResult:
    """Return the findings of the probe, of this command or of an earlier one on the same network and data."""
    record = run_step(context, CHECK)
    assert isinstance(record, CheckResult)
    return record


def refuse_findings(found: CheckResult, context: RunContext, last: str) -> None:
    """Refuse a network or data that a step cannot work with, before anything long runs.

    Raises:
        EdgeCompressError: The first finding that stops a step up to `last`.
    """
    steps = {step.name for step in steps_up_to(last, context.options)}
    steps -= set() if context.repairs else {"finetune"}  # without training it only re-estimates BatchNorm
    for finding in found.errors:
        if CHECKS[finding.kind].blocks in steps:
            raise as_error(finding, context.recipe.name)


def run_step(context: RunContext, step: Step) -> Record:
    """Run one step, those that it needs being done, or reuse what it left; return its record."""
    name = context.step_name(step.name)
    folder = context.path if step.name in STAGED else context.run.path
    path = folder(step.files[0])
    made_from = hash_inputs(context, step) if step.reusable else ""
    if step.reusable and context.run.is_done(name, made_from):
        record = read_record(path, step.record)
        context.on_step(name, record, context.run.record.steps[name].seconds, True)
        return record
    with stopwatch() as spent:
        record = _make_record(context, step, name)
    write_atomically(path, to_json(record))
    if step.reusable:
        files = tuple(str(folder(file).relative_to(context.run.folder)) for file in step.files)
        context.run.finish(name, made_from, files, spent[0])
    context.on_step(name, record, spent[0], False)
    return record


def _make_record(context: RunContext, step: Step, name: str) -> Record:
    """Return the record of a step; an error of the user's code is raised with the name of the step before it."""
    try:
        return step.make(context)
    except UserCodeError as error:
        raise UserCodeError(f"{name}: {error}") from error.__cause__


def _order_steps(context: RunContext, last: str) -> Iterator[tuple[Step, int]]:
    """Yield the steps up to `last`, each with its stage: all stages before the last are complete before the last one is planned."""
    final = context.options.stages
    for step in steps_up_to(last, context.options):
        if step.name == STAGED[0]:
            for stage in range(1, final):
                yield from ((STEPS[name], stage) for name in STAGED)
        yield step, final


def _check_options(context: RunContext, step: Step) -> None:
    """Refuse options that contradict a step, before anything is computed.

    Raises:
        ConfigError: Says which option to give.
    """
    if context.options.stages > 1 and step.name != "analyze" and not context.repairs:
        source = context.recipe.source
        raise ConfigError(f"{source}: no training data for --stages; add train_data(), give --data, or ask for one stage")
    if step.name == "qat" and not step.applies(context.options):
        wrong = "no int8-static file is asked for" if context.options.qat_epochs else "0 epochs"
        raise ConfigError(f"quantization-aware training: {wrong}; give --qat-epochs 3, say, and scheme int8-static")
