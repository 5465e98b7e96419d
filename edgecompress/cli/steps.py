"""The commands that run the steps of `edgecompress.pipeline.steps.STEPS`, each with all steps that it needs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from edgecompress.cli import parameters as p
from edgecompress.cli.session import make_console, open_target
from edgecompress.cli.views.artifacts import list_remarks, tabulate_artifacts
from edgecompress.cli.views.steps import STEP_VIEWS
from edgecompress.options import QAT_COMMAND_EPOCHS, Options
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import BenchmarkResult, ExportResult, to_json
from edgecompress.records.artifact import group_refusals
from edgecompress.records.fields import option_fields
from edgecompress.targets import TARGETS

if TYPE_CHECKING:
    from edgecompress.pipeline.context import RunContext

# Values that a command gives an option where neither the command line nor the run sets one.
COMMAND_DEFAULTS: Final[dict[str, dict[str, Any]]] = {"qat": {"qat_epochs": QAT_COMMAND_EPOCHS}}


# Options of a step that its command does not offer: fine-tuning has them too, and would silently be done again with other weights.
NOT_OFFERED: Final[dict[str, tuple[str, ...]]] = {"qat": ("epoch_samples", "batch_size", "seed", "data")}


def step_options(name: str) -> tuple[str, ...]:
    """Return the options that the command of a step takes; `export`, which runs all steps, takes those of all."""
    steps = STEPS.values() if name == "export" else (STEPS[name],)
    return tuple(dict.fromkeys(option for step in steps for option in step.options if option not in NOT_OFFERED.get(name, ())))


def make_step_command(name: str) -> Callable[..., None]:
    """Return the function of a step's command."""
    defaults = COMMAND_DEFAULTS.get(name, {})
    instead = {option: option_fields(Options)[option].option._replace(usual=str(value)) for option, value in defaults.items()}

    @p.add_fields(Options, step_options(name), can_negate=True, instead=instead)
    def run_step(recipe: p.Target = None, run: p.RunFolder = None, *, json: p.Json = False, **given: Any) -> None:
        with open_target(recipe, run, given, defaults=defaults) as context:
            from edgecompress.pipeline.runner import run as run_steps

            record = run_steps(context, name)
        if json:
            typer.echo(to_json(record), nl=False)
        else:
            out = make_console()
            out.print(STEP_VIEWS[name].tabulate(record))
            for line in () if out.is_terminal else STEP_VIEWS[name].explain(record):  # there they stand below the step's line already
                out.print(line)

    return run_step


@p.add_fields(Options, step_options("export"), can_negate=True, also_rare=("calibration_samples", "repetitions"))
def run_export(recipe: p.Target = None, run: p.RunFolder = None, *, json: p.Json = False, **given: Any) -> None:
    """Run all steps, measure the artifacts on this machine and write the report."""
    with open_target(recipe, run, given) as context:
        from edgecompress.pipeline.publication import publish

        exported, measured, verdict = publish(context)
    if json:
        typer.echo(to_json(exported), nl=False)
    else:
        out = make_console()
        out.print(tabulate_artifacts(exported.artifacts, measured))
        if len({artifact.format for artifact in exported.artifacts}) > 1:
            out.print("speed-up and change are against the dense fp32 file of the same format")
        for line in (verdict.sentence, *verdict.proofs):
            out.print(line, soft_wrap=not out.is_terminal)
    _conclude_export(context, exported, measured)


def _conclude_export(context: "RunContext", exported: ExportResult, measured: Sequence[BenchmarkResult]) -> None:
    """Print why artifacts were refused, but for the cause that becomes the error, why times are noisy, and the next commands.

    Raises:
        EdgeCompressError: An artifact was refused.
    """
    from edgecompress.pipeline.publication import check_refusals, find_main_refusal

    folder, notes, main = context.run.folder, make_console(stderr=True), find_main_refusal(exported)
    for group in group_refusals(exported.refused):
        label = "refused, made only to compare with" if group.for_comparison else "refused"
        if group != main:
            notes.print(f"{label}: {', '.join(group.paths)}: {group.cause}")
    looks = [f"open {folder / 'report.html'}"]
    if any(artifact.model == "compressed" for artifact in exported.artifacts):
        looks.insert(0, f"edgecompress bench {folder} --device {TARGETS[context.options.target].device}")
    for remark in list_remarks(measured, noise_only=True):
        notes.print(remark)
    for label, line in zip(("next:", "     "), looks, strict=False):
        notes.print(f"{label} {line}")
    check_refusals(exported)


STEP_COMMANDS: Final = {name: run_export if name == "export" else make_step_command(name) for name in STEPS}
